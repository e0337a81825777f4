"""Regional prompts on transformers of diffusers."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layered_core.attention.attention_maps import AttentionMaps
from layered_core.attention.joint_regions import JointRegions
from layered_core.attention.regional_plan import Region, Settings, plan_regions
from layered_core.document import LayerDocument
from layered_core.errors import invalid
from layered_diffusers.methods.layer_loras import DocumentLoras
from layered_diffusers.sampling import WordedMethod
from layered_diffusers.transformer.joining import Row
from layered_diffusers.transformer.layer_loras import JointLoras
from layered_diffusers.transformer.run import FlowRun
from layered_diffusers.transformer.text import Text, check_embeddings, encode, tokenise


class JointPrompts(WordedMethod):
    """Make each layer's words act where the layer is visible. Sample with :attr:`prompts` in place of the
    prompts, and otherwise as without this method."""

    on_transformers = True

    def __init__(
        self,
        model: Any,
        documents: Sequence[LayerDocument],
        settings: Settings | None = None,
        *,
        prompts: Sequence[str] | None = None,
        negative: str = "",
        maps: AttentionMaps | None = None,
        adapters: Path | None = None,
    ) -> None:
        """Plan a run.

        Args:
            model: one of :data:`~layered_diffusers.models.loading.TRANSFORMERS`; it encodes the words.
            documents: one for each picture, or one for all of them; the canvas is stretched over the picture.
            settings: see :class:`~layered_core.attention.regional_plan.Settings`; without ``rescale``.
            prompts: prompt of the whole picture for each document; empty or None takes the document's words.
            negative: negative prompt of the whole picture; empty takes the document's own.
            maps: records the attention to the layers' words; works with one document only.
            adapters: folder of the LoRAs that the layers' recipes name.

        Raises:
            LayeredError: see :func:`~layered_core.attention.regional_plan.plan_regions`; a layer has an
                embedding, or more words than the model reads; the settings rescale guidance; see also
                :class:`~layered_diffusers.methods.layer_loras.DocumentLoras`.
        """
        self.model, self.settings, self.maps = model, settings or Settings(), maps
        if maps is not None and len(documents) != 1:
            raise invalid("maps: number of documents", len(documents), "1")
        if self.settings.rescale:
            fix = "Guidance is rescaled on UNets only without ComfyUI; in ComfyUI on transformers too"
            raise invalid("rescale", self.settings.rescale, "0 on transformers", fix)
        check_embeddings(model, documents)
        own = documents if self.settings.strength > 0 else []
        self.loras = DocumentLoras(model, own, adapters, self.settings.growth)
        self.plans = [
            plan_regions(
                document,
                self.settings,
                prompt,
                negative,
                partial(tokenise, model),
                record=maps is not None,
            )
            for document, prompt in zip(documents, prompts or [""] * len(documents), strict=True)
        ]
        self._texts: dict[tuple[Hashable, str], Text] = {}
        for i, region in ((i, r) for i, plan in enumerate(self.plans) for r in (*plan.cond, *plan.uncond)):
            key = self._key(i, region)
            if region.text and region.strength > 0 and key not in self._texts:
                with self.loras.encoding(i, region.name):
                    self._texts[key] = encode(model, region.text, f"layer {region.name!r}")

    def _key(self, document: int, region: Region) -> tuple[Hashable, str]:
        """Return the key of a region's encoded text: texts that LoRAs of a layer change are the layer's own."""
        speaks = self.loras.speaks_for(document, region.name)
        return (document, region.name) if speaks else None, region.text

    def start(self, run: FlowRun, stack: ExitStack) -> None:  # type: ignore[override]  # on transformers
        """Put the regions into the run, if any layer's words act, and let LoRAs act."""
        count = len(run.latents)
        if len(self.plans) not in (1, count):
            raise invalid("documents", len(self.plans), f"one, or one for each picture, that is {count}")
        self._tell_what_has_no_effect(run)
        for half, rows in run.joint.halves.items():
            made = [self._half(i, half, run, rows[0].main) for i in range(len(self.plans))]
            made = made * count if len(made) == 1 else made
            run.joint.halves[half] = [Row(row.main, regions) for row, regions in zip(rows, made, strict=True)]
        self._tell_of_unseen(run)
        if self.loras:
            run.joint.loras = JointLoras(self.loras, run.host, run.latents, self._cut)
            run.joint.loras.start(stack)
        cond = [row.regions for row in run.joint.halves["cond"]]
        if self.settings.guidance != 1 and any(x is not None for x in cond):
            run.joint.factor = partial(_factors, cond, (run.latents.shape[-2], run.latents.shape[-1]))

    def _tell_of_unseen(self, run: FlowRun) -> None:
        regions = [r.regions for rows in run.joint.halves.values() for r in rows if r.regions is not None]
        names = [name for r in regions for name in r.unseen(run.joint.joiner.grid)]
        if names:
            logging.getLogger(__name__).warning(
                "The words of layers %s do not act: these layers cover too little of any of the picture's %s x %s "
                "cells. Enlarge them, or raise growth",
                ", ".join(repr(n) for n in dict.fromkeys(names)),
                *run.joint.joiner.grid[::-1],
            )

    def _tell_what_has_no_effect(self, run: FlowRun) -> None:
        if "uncond" in run.joint.halves:
            return
        if self.settings.guidance != 1 or any(plan.uncond for plan in self.plans):
            logging.getLogger(__name__).warning(
                "Classifier-free guidance is off, so negative prompts of layers and the setting 'guidance' have "
                "no effect"
            )

    def _half(self, document: int, half: str, run: FlowRun, tokens: int) -> JointRegions | None:
        plan = self.plans[document]
        regions = plan.cond if half == "cond" else plan.uncond
        maps = self.maps if half == "cond" else None
        if not any(r.acts for r in regions) and not (regions and maps is not None):
            return None
        window = run.schedule.window(self.settings.start, self.settings.end)
        texts = [self._texts.get(self._key(document, r)) if r.acts else None for r in regions]
        if self.settings.mode == "eligen":  # its LoRAs were trained with padding
            contexts = [None if t is None else t.states for t in texts]
        else:
            contexts = [None if t is None else t.own for t in texts]
            regions = tuple(
                r if t is None else r.without_padding(t.kept.tolist())
                for r, t in zip(regions, texts, strict=True)
            )
        return JointRegions(regions, self.settings, contexts, tokens, window, maps, cut=self._cut)


def _factors(regions: Sequence[JointRegions | None], size: tuple[int, int], sigma: float) -> Tensor:
    """Return the factor on the guidance of every picture's cells, ``[B, 1, h, w]``."""
    factors = [torch.ones(size) if r is None else r.guidance(size, sigma) for r in regions]
    return torch.stack(factors)[:, None]
