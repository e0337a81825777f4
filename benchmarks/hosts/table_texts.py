"""Text encoders of ComfyUI's own tokenizers and templates, whose networks are tables: every token's vector follows
from its id and its place. They stand for encoders of gigabytes where only the number of tokens matters."""

from __future__ import annotations

from typing import Any

import torch

POOLED = 32
"""Width of the pooled text."""


class Table(torch.nn.Module):
    """A text encoder that gives every token the vector of its id, and of its place."""

    def __init__(self, width: int, layers: int = 0, masked: bool = True) -> None:
        """Make a table.

        Args:
            width: of a vector.
            layers: number of layers whose states are given; 0: one, without an axis of its own.
            masked: whether an attention mask is given as well.
        """
        super().__init__()
        self.width, self.layers, self.masked = width, layers, masked
        self.probe = torch.nn.Parameter(torch.zeros(1))

    def encode_token_weights(self, pairs: Any) -> tuple[Any, ...]:
        """Return vectors ``[1, T, C]`` or ``[1, layers, T, C]``, the pooled text, and the mask."""
        ids = torch.tensor([int(t) for chunk in pairs for t, *_ in chunk])
        known = torch.cos(ids[:, None] * torch.arange(1, self.width + 1) * 0.37)
        out = known[None] + 0.05 * torch.sin(torch.arange(len(ids)))[None, :, None]
        if self.layers:
            out = torch.stack([out * (1 + i) for i in range(self.layers)], 1)
        pooled = torch.cos(ids.float().mean() * torch.arange(POOLED))[None]
        mask = {"attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        return (out, pooled, mask) if self.masked else (out, pooled)

    def set_clip_options(self, options: Any) -> None:
        """Do nothing: a table has no options."""

    def reset_clip_options(self) -> None:
        """Do nothing: a table has no options."""


def encoder(kind: type, **tables: dict[str, Any]) -> type:
    """Return a class like ComfyUI's text encoder ``kind`` whose networks, by name, are tables."""

    class Small(kind):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            torch.nn.Module.__init__(self)
            for name, table in tables.items():
                setattr(self, name, Table(**table))
            self.clip = self.clip_name = next(iter(tables))
            self.dtypes = {torch.float32}
            self.t5_attention_mask = False

    return Small
