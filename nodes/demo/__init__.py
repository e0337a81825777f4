"""Nodes that bring the storybook: its model, its ControlNet, its pictures."""
