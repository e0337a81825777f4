"""Words that act where their layer is: regional cross-attention, and masks read out of a model's
attention."""
