"""Nodes that build a picture layer by layer."""
