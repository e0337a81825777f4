"""Layered rendering: each layer is led to its place while the picture is still forming, on every family of
models."""
