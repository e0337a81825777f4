"""ControlNet per layer: what a net is shown, and where and how strongly it acts."""
