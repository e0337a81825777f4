"""Nodes that limit how far each place may change, and that redo a part of a picture."""
