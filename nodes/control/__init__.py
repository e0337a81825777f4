"""Nodes for ControlNets per layer."""
