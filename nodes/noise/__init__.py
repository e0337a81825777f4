"""Nodes that say how far each place may change, and redo a part of a picture."""
