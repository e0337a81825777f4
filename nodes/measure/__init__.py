"""Nodes that measure pictures against layers."""
