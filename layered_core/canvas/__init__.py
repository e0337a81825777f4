"""Where layers lie and what is seen of them: placement, masks, blend modes, compositing."""
