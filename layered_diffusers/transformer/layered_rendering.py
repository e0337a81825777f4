"""Layered rendering on transformers: while the picture is forming, every layer is predicted by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layered_core.document import LayerDocument
from layered_core.rendering.rendering_plan import Rendering
from layered_core.rendering.vision_guidance import fuse, left_in
from layered_diffusers.methods.layer_loras import replace_forward
from layered_diffusers.methods.layered_rendering import Encode, Owner, Rendered
from layered_diffusers.sampling import WordedMethod
from layered_diffusers.transformer.latents import pack, unpack
from layered_diffusers.transformer.layer_loras import JointLoras
from layered_diffusers.transformer.run import FlowRun
from layered_diffusers.transformer.text import Text, check_embeddings, encode


class TransformerRendering(Rendered):
    """Layered rendering on a transformer. See :class:`~layered_diffusers.methods.layered_rendering.Rendered`.

    The pipeline goes on calling the transformer for the halves of classifier-free guidance, and guides by what it
    gets: each half's predictions are fused from those of the parts. Guidance is linear, so this is the same as
    fusing guided predictions. (Qwen-Image's pipeline then gives the guided prediction the length of the fused
    conditional one.)
    """

    on_transformers = True
    _placed: JointLoras | None = None

    def __init__(
        self,
        model: Any,
        encode: Encode,
        documents: Sequence[LayerDocument],
        rendering: Rendering,
        *,
        prompts: Sequence[str] | None = None,
        negative: str = "",
        then: WordedMethod | None = None,
        adapters: Path | None = None,
    ) -> None:
        """Plan a run. Arguments and errors are those of
        :class:`~layered_diffusers.methods.layered_rendering.Rendered`; besides, no layer may have an embedding."""
        check_embeddings(model, documents if rendering.share > 0 else [])
        super().__init__(
            model, encode, documents, rendering,
            prompts=prompts, negative=negative, then=then, adapters=adapters,
        )  # fmt: skip

    def start(self, run: FlowRun, stack: ExitStack) -> None:  # type: ignore[override]  # on transformers
        """Encode the words of all parts, and come between the pipeline and its transformer until ``stack``
        closes."""
        super().start(run, stack)
        if not self._end:
            return
        if "uncond" not in run.texts and any(p.negative for p in self.rows.parts):
            logging.getLogger(__name__).warning(
                "Classifier-free guidance is off, so negative prompts have no effect"
            )
        if self.loras:
            self._placed = run.joint.loras = JointLoras(self.loras, run.host, run.latents, self._cut)
            self._placed.start(stack)
        self._texts = {self._spoken("", None): encode(self.model, "")}
        for part, owner in zip(self.rows.parts, self._owners(), strict=True):
            for spoken in {self._spoken(t, owner) for t in (part.words, part.negative)} - self._texts.keys():
                with self.loras.encoding(*owner) if spoken[1] is not None else nullcontext():
                    self._texts[spoken] = encode(
                        self.model, spoken[0], f"layer {part.name!r}" if part.name else "prompt"
                    )
        transformer = self.model.transformer
        replace_forward(transformer, partial(self._forward, run, transformer.forward), stack)

    def before_step(self, run: FlowRun, index: int) -> None:  # type: ignore[override]  # on transformers
        """Keep the run's attention out of the layers' passes, and let the method act that follows them."""
        run.joint.idle = index < self._end
        super().before_step(run, index)

    def _forward(self, run: FlowRun, own: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Answer a call of the pipeline."""
        joint, rows = run.joint, self.rows
        if not joint.idle:
            return own(*given, **named)
        call, owners = _Call(run, own, given, named), self._owners()
        if joint.step == joint.call == 0:
            rows.planted = self._planted(
                run,
                lambda words, picture: self._flow(
                    call, run.latents[picture], words, owners if any(words) else None
                ),
                -1.0,
            )
        shifted = run.latents[rows.picture] + rows.planted
        paper = self.rendering.form == "paper"
        back = 0.0 if paper else left_in(run.sigmas[joint.step], "flow_prediction")
        halves = []
        for half in joint.passes[joint.call]:
            if half == "uncond" and self.rendering.preset == "fast":
                halves.append(self._flow_of(call, run.latents, run.texts["uncond"]))
                continue
            words = [part.words if half == "cond" else part.negative for part in rows.parts]
            found = self._flow(call, shifted, words, owners)
            halves.append(fuse(found - back * rows.planted, rows.masks, rows.picture))
        return call.answer(torch.cat(halves))

    def _flow(
        self, call: _Call, latents: Tensor, words: Sequence[str], owners: Sequence[Owner] | None
    ) -> Tensor:
        """Return the flow for latents ``[n, C, h, w]`` and words each. ``owners`` says whose LoRAs act on each row;
        None: no LoRA does."""
        nobody: list[Owner | None] = [None] * len(words)
        spoken = zip(words, owners or nobody, strict=True)
        return self._flow_of(call, latents, [self._texts[self._spoken(*x)] for x in spoken], owners)

    def _flow_of(
        self, call: _Call, latents: Tensor, texts: Sequence[Text], owners: Sequence[Owner] | None = None
    ) -> Tensor:
        """Return the flow for latents ``[n, C, h, w]`` and a text each, in a pass for every length of text, or
        more where memory asks for it."""
        lengths = torch.tensor([len(text.states) for text in texts], device=latents.device)
        flow = torch.empty_like(latents)
        for length in lengths.unique():
            rows = (lengths == length).nonzero()[:, 0]
            flow[rows] = self._in_parts(rows, lambda part: self._of_rows(call, latents, texts, owners, part))
        return flow

    def _of_rows(
        self,
        call: _Call,
        latents: Tensor,
        texts: Sequence[Text],
        owners: Sequence[Owner] | None,
        part: Tensor,
    ) -> Tensor:
        rows = part.tolist()
        alone = (
            nullcontext()
            if owners is None or self._placed is None
            else self._placed.alone([owners[i] for i in rows])
        )
        with alone:
            return call.flow(latents[part], [texts[i] for i in rows])


@dataclass(frozen=True)
class _Call:
    """A call of the transformer by its pipeline, which can be made with other rows."""

    run: FlowRun
    own: Callable[..., Any]
    """The transformer's own forward."""
    given: tuple[Any, ...]
    named: dict[str, Any]

    def flow(self, latents: Tensor, texts: Sequence[Text]) -> Tensor:
        """Return the flow, noise minus picture, that the transformer predicts for latents ``[n, C, h, w]`` and
        texts of one length, in their shape."""
        dtype, host, count = self.run.model.transformer.dtype, self.run.host, len(latents)
        inputs, states = latents.to(dtype), [text.states.to(latents.device, dtype) for text in texts]
        if host.listed:
            times = self.given[1][:1].expand(count)
            found = torch.stack(self.own(list(inputs[:, :, None]), times, states, **self.named)[0])[:, :, 0]
        else:
            found = self.own(*self.given, **self._named(inputs, torch.stack(states), texts))[0]
            found = unpack(found, (int(latents.shape[-2]), int(latents.shape[-1]))) if host.packed else found
        return (-found if host.turned else found).to(latents)

    def answer(self, flow: Tensor) -> tuple[Any]:
        """Return flow ``[n, C, h, w]`` as the transformer gives it."""
        host = self.run.host
        found = -flow if host.turned else flow
        if host.listed:
            return (list(found[:, :, None].to(self.given[0][0])),)
        return ((pack(found) if host.packed else found).to(self.named["hidden_states"]),)

    def _named(self, inputs: Tensor, states: Tensor, texts: Sequence[Text]) -> dict[str, Any]:
        """Return the inputs of a transformer that takes batches."""
        named, count = dict(self.named), len(inputs)
        named["hidden_states"] = pack(inputs) if self.run.host.packed else inputs
        named["encoder_hidden_states"] = states
        for name in ("timestep", "guidance"):  # one number a row, the same for all
            if named.get(name) is not None:
                named[name] = named[name][:1].expand(count)
        if "pooled_projections" in named:
            pooled = [text.pooled for text in texts if text.pooled is not None]
            named["pooled_projections"] = torch.stack(pooled).to(states)
        if "txt_ids" in named:  # all texts stand at one place
            named["txt_ids"] = named["txt_ids"].new_zeros(states.shape[1], 3)
        if "img_shapes" in named:
            named["img_shapes"] = named["img_shapes"][:1] * count
        if "encoder_hidden_states_mask" in named:  # texts of one length have no padding
            named["encoder_hidden_states_mask"] = None
        return named
