"""Nodes that measure."""
