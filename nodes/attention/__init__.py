"""Nodes for regional prompts and for looking at attention."""
