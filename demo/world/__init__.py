"""The storybook world: its words, how its things are drawn, its scenes and its judges."""
