"""Transformers of diffusers: their pipelines sample by their own calls, on which the methods act from outside."""
