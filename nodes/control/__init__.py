"""Nodes for ControlNets and model patches per layer."""
