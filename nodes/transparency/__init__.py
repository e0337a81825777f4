"""Nodes of LayerDiffuse: transparent layers painted, read and encoded."""
