"""Changes to a stack of layers: arranging, choosing, taking pictures out and putting them in, the preview."""
