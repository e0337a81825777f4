"""Change a part of something and keep the rest to the bit."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_outside(changed: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
    """``mask * changed + (1 - mask) * kept``; exactly ``kept`` where the mask is 0 and exactly ``changed`` where it is 1.

    On pictures it is a soft paste. On latents, with ``kept`` at the run's own noise level after every step, it is blended latent
    diffusion (Avrahami et al., arXiv 2206.02779 section 3.2).

    Args:
        changed: ``[..., H, W]``.
        kept: of the same shape.
        mask: ``[H, W]`` or any shape that broadcasts, 0..1, 1 where the change shows.
    """
    mixed = torch.lerp(kept, changed, mask.to(kept.dtype).expand_as(kept))
    return torch.where(mask > 0, torch.where(mask < 1, mixed, changed), kept)
