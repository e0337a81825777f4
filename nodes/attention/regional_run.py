"""A sampling run of ComfyUI in which layers' words act: what UNets and transformers have in common.

Which conditionings have regions, which part of the picture a pass is over, and how much more guidance layers
get, does not depend on the network.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import comfy.patcher_extension
from torch import Tensor

from ...layered_core.attention.parts import Part, find_part
from ...layered_core.attention.regional_attention import RegionalAttention
from ...layered_core.attention.regional_plan import Settings
from ...layered_core.errors import LayeredError
from ...layered_core.noise.guidance import guided_more
from ..noise.cut_out import CutOut
from .conditionings import KEY, Half

PARTS = "layered_diffusion_parts"
"""The key of the parts of the latents that a forward pass is over."""


@dataclass
class Run:
    """The regional attention of one sampling run."""

    guider: Any
    """ComfyUI's guider of the run."""
    own: Mapping[str, set[UUID]]
    """The uuids of the conditionings that were connected as positive, negative and so on."""
    latent_size: tuple[int, int]
    """Height and width of the whole latent, h and w. Layers act in passes over all of it and in tiles of it;
    conditionings with a smaller area get the main prompt."""
    attentions: dict[UUID, RegionalAttention] = field(default_factory=dict, kw_only=True)
    """By the uuid that ComfyUI gives to every conditioning of a run."""
    predictions: dict[str, Tensor] = field(default_factory=dict, kw_only=True)
    """The predictions of this step by the names of the guider's conditionings."""
    predicted: set[UUID] = field(default_factory=set, kw_only=True)
    """The uuids of the conditionings that took part in these predictions: another node may leave some out."""
    latents: Tensor | None = field(default=None, kw_only=True)
    """The noisy latents of this step, ``[B, C, h, w]``, or ``[B, C, frames, h, w]``."""
    areas: dict[UUID, tuple[int, int]] = field(default_factory=dict, kw_only=True)
    """Height and width of the conditionings that have an area, latent cells."""

    def start(self, halves: Mapping[UUID, Half], cut: CutOut | None) -> None:
        """Wrap the run.

        Args:
            halves: the regions of every conditioning that has some.
            cut: what Regenerate Layers cut out of the picture; None: the whole canvas is sampled.
        """
        raise NotImplementedError

    def wrap(self, *wrappers: tuple[str, Any]) -> None:
        """Add wrappers, each with its kind, to the run's own copy of the model's options."""
        options = self.guider.model_options.setdefault("transformer_options", {})
        for kind, wrapper in wrappers:
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, options)

    @property
    def cells(self) -> tuple[int, int]:
        """Height and width of the finest map of the picture that reads texts."""
        return self.latent_size

    def noise(self, sigma: float) -> float:
        """Return the standard deviation of the noise over that of the picture, at the sampler's sigma."""
        return sigma

    def window(self, settings: Settings) -> tuple[float, float]:
        """Return the noise levels at which layers begin and stop to act."""
        sampling = self.guider.model_patcher.get_model_object("model_sampling")
        begin, end = (sampling.percent_to_sigma(share) for share in (settings.start, settings.end))
        return self.noise(float(begin)), self.noise(float(end))

    def sample(
        self, executor: comfy.patcher_extension.WrapperExecutor, guider: Any, *more: Any, **named: Any
    ) -> Tensor:
        """Wrap the sampler: give conditionings that ComfyUI has copied a uuid of their own.

        When a conditioning has an area, ComfyUI adds a copy of it to the other half of guidance, with that
        half's text but under the same uuid. The copy gets the regions that belong to its text.
        """
        entries = [(name, entry) for name, conditions in guider.conds.items() for entry in conditions or ()]
        uuid_of_text = {
            id(entry["model_conds"].get("c_crossattn")): entry["uuid"]
            for name, entry in entries
            if entry["uuid"] in self.own[name]
        }
        for name, entry in entries:
            if entry["uuid"] not in self.own[name]:
                entry["uuid"] = uuid4()
                original = uuid_of_text.get(id(entry["model_conds"].get("c_crossattn")))
                if original in self.attentions:
                    self.attentions[entry["uuid"]] = self.attentions[original]
        self._warn_of_areas(entries)
        self._warn_of_unseen()
        height, width = self.latent_size
        self.areas = {
            entry["uuid"]: (
                min(entry["area"][0], height - entry["area"][2]),
                min(entry["area"][1], width - entry["area"][3]),
            )
            for _, entry in entries
            if len(entry.get("area") or ()) == 4
        }
        return executor(guider, *more, **named)

    def _warn_of_areas(self, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Say in the log which layers do not act because their conditioning has an area, (height, width, y,
        x) in cells of the latent, that is not all of it."""
        small = [
            (entry[KEY].layers, name)
            for name, entry in entries
            if entry["uuid"] in self.own[name]
            and entry["uuid"] in self.attentions
            and tuple((entry.get("area") or self.latent_size)[:2]) != self.latent_size
        ]
        for layers, name in dict.fromkeys(small):
            logging.warning(
                "Regional Prompt Attention: the words of layers %s do not act in this run's %s, which has an "
                "area smaller than the picture. A mask on the conditioning keeps them",
                layers,
                name,
            )

    def _warn_of_unseen(self) -> None:
        """Say in the log which layers are too small for the model's cells."""
        names = [n for a in self.attentions.values() for n in a.unseen(self.cells)]
        if names:
            logging.warning(
                "Regional Prompt Attention: the words of layers %s do not act: these layers cover too little of any "
                "of the picture's %s x %s cells. Enlarge them, or raise growth",
                ", ".join(repr(n) for n in dict.fromkeys(names)),
                self.cells[1],
                self.cells[0],
            )

    def _parts(self, x: Tensor, uuids: Sequence[UUID]) -> list[Part | None]:
        """Return the part that each share of the rows of ``x`` ``[B', C, h', w']`` is of, None for the whole; an
        empty list if no layer acts.

        Nodes that sample tile by tile lay the tiles one after the other, each with all its conditionings.
        """
        size = tuple(x.shape[-2:])
        if size == self.latent_size:
            return [None]
        if not any(u in self.attentions for u in uuids) or any(self.areas.get(u) == size for u in uuids):
            return []
        pictures = x[:0] if self.latents is None else self.latents.to(x.device)
        pictures = pictures.repeat(len(uuids), *[1] * (x.ndim - 1))  # as the rows of a pass over all of it
        whole = pictures.flatten(1, -3)
        parts: list[Part | None] = []
        for tile in x.flatten(1, -3).split(max(1, len(whole))):
            places = {find_part(*rows) for rows in zip(tile, whole, strict=False)}
            if len(tile) != len(whole) or len(places) != 1 or None in places:
                raise unknown_part(size, self.latent_size)
            parts += places
        return parts

    def predict(
        self, executor: comfy.patcher_extension.WrapperExecutor, model: Any, conds: Sequence[Any], x: Tensor,
        *more: Any,
    ) -> Any:  # fmt: skip
        """Wrap the predictions of a step: keep the noisy latents, of which tiles are parts, and the predictions
        for :meth:`guide`. Other packs predict one conditioning alone between, which is not kept."""
        self.latents = x
        out = executor(model, conds, x, *more)
        if len(conds) > 1:
            entries = [[e["uuid"] for e in conditions or ()] for conditions in conds]
            self.predicted = {uuid for uuids in entries for uuid in uuids}
            names = {e["uuid"]: name for name, own in self.guider.conds.items() for e in own or ()}
            self.predictions = {
                names[uuids[0]]: o
                for uuids, o in zip(entries, out, strict=True)
                if uuids and uuids[0] in names
            }
        return out

    def guide(self, prediction: Mapping[str, Any]) -> Tensor:
        """Return the prediction with more classifier-free guidance where layers are, rescaled there; called
        after ComfyUI's own.

        In its style regular, Dual CFG Guider gives ``negative + s2 (middle - negative)`` and then adds
        ``s1 (positive - middle)``, of which no function on the prediction is told: its share is added here.
        """
        denoised, cond, uncond = (prediction[k] for k in ("denoised", "cond_denoised", "uncond_denoised"))
        if tuple(denoised.shape[-2:]) != self.latent_size:
            return denoised
        sigma = float(prediction["sigma"].flatten()[0])
        factor = self._factor(prediction["cond"], sigma)
        # At cfg 1 the negative is not computed, so there is no guidance that could be raised.
        if prediction["uncond"] and factor is not None:
            denoised = guided_more(denoised, uncond, cond, prediction["cond_scale"], factor.to(cond))
        positive, middle = self.predictions.get("positive"), self.guider.conds.get("middle")
        if positive is not None and middle and prediction["cond"] is middle:
            factor = self._factor(self.guider.conds["positive"], sigma)
            if factor is not None:
                denoised = guided_more(denoised, cond, positive, self.guider.cfg1, factor.to(cond))
        return self._rescaled(prediction, denoised, sigma)

    def _factor(self, conditions: Sequence[Mapping[str, Any]] | None, sigma: float) -> Tensor | None:
        """Return the factor on the guidance of every pixel, ``[h, w]``; None if no layer acts there."""
        attention = self._acting(conditions)
        return None if attention is None else attention.guidance(self.latent_size, self.noise(sigma))

    def _acting(self, conditions: Sequence[Mapping[str, Any]] | None) -> RegionalAttention | None:
        """Return the regions of a conditioning; None if no layer acts there, or it took no part in this step."""
        uuids = (e["uuid"] for e in conditions or ())
        uuid = next((u for u in uuids if u in self.attentions and u in self.predicted), None)
        return None if uuid is None else self.attentions[uuid]

    def _rescaled(self, prediction: Mapping[str, Any], denoised: Tensor, sigma: float) -> Tensor:
        """Return the guided prediction, rescaled where layers are.

        What Dual CFG Guider makes of it afterwards is rescaled: in its style regular it adds ``s1 (positive -
        middle)``, in nested it takes ``negative + s2 (denoised - negative)``.
        """
        cond, whole, share = prediction["cond_denoised"], denoised, 1.0
        attention = self._acting(prediction["cond"])
        positive, middle = self.predictions.get("positive"), self.guider.conds.get("middle")
        if positive is not None and middle and prediction["cond"] is middle:
            whole, cond = denoised + self.guider.cfg1 * (positive - cond), positive
            attention = self._acting(self.guider.conds["positive"]) or attention
        elif positive is not None and middle:
            share, negative = self.guider.cfg2, self.predictions["negative"]
            whole = negative + share * (denoised - negative)
        if attention is None or not attention.settings.rescale or not share:
            return denoised
        return denoised + attention.rescaling(whole, cond, 0.0, self.noise(sigma)) / share


def unknown_part(size: tuple[int, ...], whole: tuple[int, int]) -> LayeredError:
    """Return the error for a pass of the model over a part of the picture that lies nobody knows where.

    Args:
        size: height and width of the part, latent cells.
        whole: those of the picture.
    """
    return LayeredError(
        f"layers: a pass of the model is over {size[1]}x{size[0]} latent cells, of which it is not known where they "
        f"lie among the {whole[1]}x{whole[0]} that are sampled. Take off the node that samples in parts which it "
        "shifts or scales, or Regional Prompt Attention"
    )
