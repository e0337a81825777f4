"""Nodes for LayerDiffuse: they paint, decode and encode transparent layers."""
