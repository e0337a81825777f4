"""Order in depth by Depth Anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from layered_diffusers.dataset import hub
from layered_diffusers.dataset.given import by_median
from layered_diffusers.dataset.protocols import Picture

MODEL = "depth-anything/Depth-Anything-V2-Small-hf"
"""The model that is looked for if none is named; its licence is Apache-2.0, unlike the larger ones'."""


class DepthAnything:
    """Orders things by the median of the inverse depth that Depth Anything (V1 or V2, relative) predicts."""

    def __init__(self, model: str | None = None, device: str | None = None) -> None:
        """Load ``model``, a folder or an id in the local cache."""
        name = model or MODEL
        self.model = hub.load_model("DepthAnythingForDepthEstimation", name, "depth", device)
        self.about = hub.about(name)

    @torch.no_grad()
    def near(self, picture: Picture) -> Tensor:
        """Return the inverse depth, ``[H, W]``, greater is nearer; without a unit."""
        patch = int(self.model.config.patch_size)
        side = int(getattr(self.model.config.backbone_config, "image_size", 518))
        # The shorter side becomes the model's, and both are whole numbers of patches, as its authors do.
        scale = side / min(picture.size)
        height, width = (max(1, round(x * scale / patch)) * patch for x in picture.size)
        pixels = functional.interpolate(
            picture.pixels[None].float(), (height, width), mode="bicubic", antialias=True
        ).clamp(0, 1)
        mean, deviation = (torch.tensor(x)[None, :, None, None] for x in hub.IMAGENET)
        predicted = self.model(
            pixel_values=((pixels - mean) / deviation).to(self.model.device)
        ).predicted_depth
        near = functional.interpolate(predicted[:, None].float(), picture.size, mode="bilinear")[0, 0]
        return near.cpu()

    def order(self, picture: Picture, masks: Tensor) -> Sequence[int]:
        """Return the indices of the masks ``[K, H, W]`` from far to near."""
        return by_median(self.near(picture), masks)
