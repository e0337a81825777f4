"""Nodes for the demo world, the storybook: its model, its ControlNet, its pictures."""
