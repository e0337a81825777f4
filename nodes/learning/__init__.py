"""Nodes that learn what a layer shows."""
