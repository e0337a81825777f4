"""Let layouts follow a cut-out: masks, areas and hints that are made for the whole picture, in a run that
samples a part of it.

The cut-out travels with the model that Regenerate Layers gives. It acts in runs over that node's latent.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import Tensor

from ...layered_core.errors import LayeredError, invalid
from ...layered_core.painting.repaint import Repaint

KEY = "layered_diffusion_cut_out"
"""The key of the cut-out among a model's options, and of our wrapper."""


@dataclass(frozen=True, eq=False)
class CutOut:
    """A part of a picture that is sampled, cut out and scaled."""

    plan: Repaint
    """The picture, and the part of it."""
    latents: Tensor
    """The part, encoded: ``[1, C, ..., h, w]``."""

    @property
    def picture(self) -> tuple[int, int]:
        """Width and height of the whole picture, pixels."""
        return size_of(self.plan.picture)

    @property
    def part(self) -> tuple[int, int]:
        """Width and height of the cut-out, pixels."""
        return self.plan.crop.padded_width, self.plan.crop.padded_height

    @property
    def cells(self) -> tuple[int, int]:
        """Width and height of the cut-out, latent cells."""
        return size_of(self.latents)

    def onto_picture(self, parts: Tensor) -> Tensor:
        """Return maps ``[B, L, h, w]`` of the cut-out in 0..1 as maps ``[B, L, H, W]`` of the whole picture, 0
        around it."""
        width, height = self.picture
        return self.plan.crop.put_back(parts, parts.new_zeros(*parts.shape[:2], height, width))

    def shows_picture(self, pictures: Tensor) -> bool:
        """Return whether pictures ``[B, H, W, 3]`` are the whole one with only its region changed, as Paste
        Back gives it."""
        kept, picture = self.plan.mask == 0, self.plan.picture.permute(1, 2, 0)
        if pictures.shape[1:] != picture.shape or not bool(kept.any()):
            return False
        return float((pictures - picture.to(pictures))[:, kept].abs().mean()) < 1 / 255

    def is_own_mask(self, masks: Tensor) -> bool:
        """Return whether masks ``[..., H, W]`` are the mask of the cut-out that Regenerate Layers gives."""
        own = self.plan.cut_mask().to(masks)
        return masks.shape[-2:] == own.shape and torch.allclose(masks, own.expand_as(masks), atol=1 / 255)

    def check_size(self, latents: Tensor) -> None:
        """Raise :class:`LayeredError` unless latents ``[..., h, w]`` have the cut-out's size, so that it is
        known which part of the picture they are."""
        size = size_of(latents)
        if size != self.cells:
            raise invalid(
                "latent size in cells",
                text_of(size),
                f"{text_of(self.cells)}, that of the cut-out, which layers, masks and hints follow",
                "Sample the latent that Regenerate Layers gives, without scaling it",
            )


def with_cut_out(model: comfy.model_patcher.ModelPatcher, cut: CutOut | None) -> None:
    """Set the cut-out that a model's runs are of, in place of an earlier one; None: the whole picture."""
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    options = model.model_options.setdefault("transformer_options", {})
    options.pop(KEY, None)
    model.remove_wrappers_with_key(kind, KEY)
    if cut is not None and not cut.plan.is_whole:
        options[KEY] = cut
        model.add_wrapper_with_key(kind, KEY, _sample)


def cut_of(guider: Any, latents: Tensor, mask: Tensor | None) -> CutOut | None:
    """Return the cut-out that a run samples; None if it samples something else: latents without a noise mask
    that are not those of the cut-out."""
    cut = guider.model_options.get("transformer_options", {}).get(KEY)
    if cut is None or mask is not None:
        return cut
    own = cut.latents.to(latents)
    return cut if own.shape[1:] == latents.shape[1:] and bool((latents == own).all()) else None


def _sample(
    executor: comfy.patcher_extension.WrapperExecutor, noise: Tensor, latent_image: Tensor, sampler: Any,
    sigmas: Tensor, denoise_mask: Tensor | None = None, *more: Any, **named: Any,
) -> Tensor:  # fmt: skip
    """Wrap a whole run: cut what its conditionings have for the whole picture."""
    guider = executor.class_obj
    cut = cut_of(guider, latent_image, denoise_mask)
    if cut is not None:
        controls: dict[int, Any] = {}
        before = guider.conds
        guider.conds = {
            name: [x for c in conditions or () if (x := _followed(c, cut, controls, noise)) is not None]
            for name, conditions in before.items()
        }
        for name, conditions in guider.conds.items():
            if before[name] and not conditions:
                raise LayeredError(
                    f"{name}: all its areas lie outside the part of the picture that Regenerate Layers cuts "
                    f"out. Add words for the whole picture with Conditioning (Combine), or set size to 0"
                )
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, *more, **named)


def _followed(
    entry: Mapping[str, Any], cut: CutOut, controls: dict[int, Any], latents: Tensor
) -> dict[str, Any] | None:
    """Return a conditioning with its masks, areas, boxes and hints cut; None if its area lies outside."""
    out = dict(entry)
    if "control" in out:
        out["control"] = _followed_control(out["control"], cut, controls)
    if "mask" in out:
        out["mask"] = _followed_mask(out["mask"], cut)
    if "area" in out:
        out["area"] = _followed_area(out["area"], cut)
        if out["area"] is None:
            return None
    if "gligen" in out:
        kind, model, boxes = out["gligen"]
        placed = [(words, _followed_area(tuple(box), cut)) for words, *box in boxes]
        out["gligen"] = kind, model, [(words, *box) for words, box in placed if box is not None]
    if any(out[k] is not entry[k] for k in ("control", "mask", "area", "gligen") if k in out):
        cut.check_size(latents)
    return out


def _followed_control(control: Any, cut: CutOut, done: dict[int, Any]) -> Any:
    """Return a chain of ControlNets in which those that know of cut-outs are copies that are cut."""
    if control is None:
        return None
    if id(control) not in done:
        before = control.previous_controlnet
        cut_before = _followed_control(before, cut, done)
        followed = control
        if hasattr(control, "cut_out"):
            followed = control.cut_out(cut)
        else:
            tell_of_hint(getattr(control, "cond_hint_original", None), cut, "take Masked ControlNet Apply")
        if followed is control and cut_before is not before:
            followed = control.copy()
        done[id(control)] = followed if followed is control else followed.set_previous_controlnet(cut_before)
    return done[id(control)]


def tell_of_hint(hint: Any, cut: CutOut, instead: str = "") -> None:
    """Say in the log that a hint of another node, which stays, has the size of the whole picture. ``instead``:
    what else the user can do."""
    if isinstance(hint, Tensor) and size_of(hint) == cut.picture != cut.part:
        logging.warning(
            f"Regenerate Layers: a ControlNet's hint of {text_of(cut.picture)} has the size of the whole picture, "
            f"but only a part of it is sampled. If it is of the whole picture, make it of 'cut out'"
            + (f", or {instead}" if instead else "")
        )


def _followed_mask(mask: Tensor, cut: CutOut) -> Tensor:
    """Return a mask ``[B, H, W]`` of the whole picture, cut; one of the cut-out, and one that is the same
    everywhere, as it is."""
    size = size_of(mask)
    if bool((mask == mask.flatten()[0]).all()) or (size in (cut.part, cut.cells) and size != cut.picture):
        return mask
    if size != cut.picture:
        raise invalid(
            "mask of a conditioning: size",
            text_of(size),
            f"{text_of(cut.picture)}, that of the whole picture, or {text_of(cut.part)}, that of the part that "
            "Regenerate Layers cuts out of it",
            "Scale the mask to the picture's size",
        )
    if cut.is_own_mask(mask):
        return mask
    if size == cut.part:
        logging.info(
            f"Regenerate Layers: a conditioning's mask of {text_of(size)} is taken for one of the whole picture, "
            f"although the cut-out has that size too"
        )
    return cut.plan.cut_layout(mask)


def _followed_area(area: tuple[Any, ...], cut: CutOut) -> tuple[Any, ...] | None:
    """Return an area (height, width, top, left) of the whole picture, in latent cells or shares, as one of the
    cut-out, in latent cells; None if it lies outside. Areas with a time stay as they are."""
    crop, (cells_wide, cells_high) = cut.plan.crop, cut.cells
    per_cell = cut.part[0] / cells_wide, cut.part[1] / cells_high
    scale = per_cell
    if area[0] == "percentage":
        area, scale = area[1:], cut.picture
    if len(area) != 4:
        return area
    height, width, top, left = area
    box = crop.place((left * scale[0], top * scale[1], (left + width) * scale[0], (top + height) * scale[1]))
    if box is None:
        return None
    x, y = round(box[0] / per_cell[0]), round(box[1] / per_cell[1])
    right, bottom = round(box[2] / per_cell[0]), round(box[3] / per_cell[1])
    return (bottom - y, right - x, y, x) if right > x and bottom > y else None


def size_of(pictures: Tensor) -> tuple[int, int]:
    """Return width and height of ``[..., H, W]``."""
    return pictures.shape[-1], pictures.shape[-2]


def text_of(size: tuple[int, int]) -> str:
    """Return a width and height as a user reads them."""
    return f"{size[0]}x{size[1]}"
