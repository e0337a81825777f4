"""Attention in parts: each part gives its output and the logarithm of its softmax's denominator, from which the
parts are put together exactly (Rabe and Staats 2021, arXiv 2112.05682; Dao et al. 2022, arXiv 2205.14135)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def fused_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return plain attention ``[B, H, N, D]`` and its log-sum-exp, float32 ``[B, H, N]``, by a fused kernel of
    PyTorch; None if there is none for this device, data type and width of a head.

    Args:
        q: ``[B, H, N, D]``.
        k, v: ``[B, H, T, D]``.
    """
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return out, _heads_first(lse, q)
    if q.device.type != "cuda" or q.shape[-1] % 8 or q.shape[-1] > 256:
        return None
    if q.dtype in (torch.float16, torch.bfloat16):
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v)
    elif q.dtype == torch.float32:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    else:
        return None
    return out, _heads_first(lse[..., : q.shape[2]] if lse.shape[1] == q.shape[1] else lse, q)


def has_fused_lse(q: Tensor) -> bool:
    """Return whether :func:`fused_with_lse` has a kernel for queries such as ``q`` ``[B, H, N, D]``."""
    return _has_kernel(q.device, q.dtype, q.shape[-1])


@lru_cache
def _has_kernel(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    part = torch.zeros(1, 1, 1, width, dtype=dtype, device=device)
    try:
        return fused_with_lse(part, part, part) is not None
    except (RuntimeError, NotImplementedError, AttributeError):
        return False


def scores_with_lse(scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``softmax(S) v`` and the log-sum-exp of scores ``[B, H, N, T]``; values are ``[B, H, T, D]``."""
    return (scores.softmax(-1).to(v.dtype) @ v), scores.logsumexp(-1)


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    """Compute ``q kT / sqrt(d)``, float32 ``[B, H, N, T]``."""
    found: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return found.float()


def merge(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Put two parts of one attention together: outputs ``[B, H, N, D]``, log-sum-exps ``[B, H, N]``."""
    share = torch.sigmoid(more_lse - lse)[..., None].to(out.dtype)
    return out + (more - out) * share, torch.logaddexp(lse, more_lse)


def _heads_first(lse: Tensor, q: Tensor) -> Tensor:
    """Return a log-sum-exp as ``[B, H, N]``; some versions of PyTorch give ``[B, N, H]``."""
    lse = lse.float()
    return lse if lse.shape[1] == q.shape[1] and lse.shape[2] == q.shape[2] else lse.transpose(1, 2)
