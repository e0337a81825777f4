"""Nodes that make, change, read and write stacks of layers."""
