"""Nodes of ControlNets per layer."""
