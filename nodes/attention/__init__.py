"""Nodes of regional prompts and of attention seen."""
