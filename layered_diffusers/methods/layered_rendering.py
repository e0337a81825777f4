"""Layered rendering on diffusers UNets: while the picture is forming, every layer is predicted by itself."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layered_core.canvas.compositing import flat
from layered_core.canvas.masks import mask_pyramid
from layered_core.document import LayerDocument
from layered_core.errors import invalid
from layered_core.noise.guidance import classifier_free
from layered_core.noise.window import sigma_at
from layered_core.painting.repaint import Repaint
from layered_core.rendering.rendering_plan import Part, Rendering, background_of, plan_rendering
from layered_core.rendering.vision_guidance import (
    fuse,
    left_in,
    noise_colours,
    picture_colours,
    unit_vectors,
    vision_guidance,
    word_colours,
)
from layered_diffusers.methods.layer_loras import DocumentLoras, UNetLoras
from layered_diffusers.methods.layer_loras import Part as LoraPart
from layered_diffusers.models.adapters import with_tokens
from layered_diffusers.models.text import encode
from layered_diffusers.models.text import stack as stack_texts
from layered_diffusers.sampling import AnyRun, Run, WordedMethod, taken

Owner = LoraPart
"""Whose LoRAs act on a row."""

Spoken = tuple[str, Owner | None]
"""A text, and the layer whose LoRAs change how it is encoded; None: no LoRA does."""

Encode = Callable[[Tensor], Tensor]
"""Encodes pictures ``[B, 3, H, W]`` in 0..1 to latents ``[B, C, h, w]`` in the model's scale."""


@dataclass
class Rows:
    """The parts of all pictures of a batch, one row each."""

    parts: list[Part]
    picture: Tensor
    """Which picture each row belongs to, int64 ``[R]``."""
    masks: Tensor
    """``[R, h, w]``; those of one picture sum to 1 at every cell."""
    led: Tensor
    """Strength with which each row's colour is planted, ``[R]``."""
    planted: Tensor = field(default_factory=lambda: torch.empty(0))
    """What is planted, in the scale of the model's input, ``[R, C, h, w]``."""


class Rendered(WordedMethod):
    """What layered rendering is on every kind of model: its plans, the steps in which it acts, its rows, and the
    method that follows it.

    Sample with :attr:`prompts` in place of the prompts.
    """

    most: int | None = None
    """Rows that the model takes at once; None: all. It is halved when the device's memory does not suffice."""

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
        """Plan a run.

        Args:
            model: encodes the words; a loaded diffusers pipeline.
            encode: the model's VAE.
            documents: one for each picture, or one for all of them; the canvas is stretched over the picture.
            rendering: the settings.
            prompts: main prompt for each document; empty or None takes the document's own.
            negative: main negative prompt; empty takes the document's own.
            then: acts after the share of layered rendering, planned for the same documents and prompts; None:
                the main prompt alone.
            adapters: folder of the LoRAs that the layers' recipes name. While a layer is predicted by itself its
                LoRAs act on all of it, later where the layer is seen.

        Raises:
            LayeredError: see :func:`~layered_core.rendering.rendering_plan.plan_rendering`,
                :func:`~layered_diffusers.models.adapters.with_tokens` and
                :class:`~layered_diffusers.methods.layer_loras.DocumentLoras`.
        """
        own = documents if rendering.share > 0 else []
        self.loras: DocumentLoras = getattr(then, "loras", None) or DocumentLoras(model, own, adapters)
        self.model, self.encode, self.rendering, self.then = model, encode, rendering, then
        self.documents = [with_tokens(model, d, needed=rendering.share > 0) for d in documents]
        self.renderings = [
            plan_rendering(d, rendering, p, negative)
            for d, p in zip(self.documents, prompts or [""] * len(documents), strict=True)
        ]

    @property
    def prompts(self) -> list[str]:
        """The main prompt for every document; ``then`` may have appended to it."""
        return [p.prompt for p in self.renderings] if self.then is None else self.then.prompts

    @property
    def negative(self) -> str:
        """The main negative prompt, of the first document."""
        return self.renderings[0].negative if self.then is None else self.then.negative

    def cut_out(self, plan: Repaint) -> WordedMethod:
        """Return the same layers with their places cut as the picture is."""
        other = copy.copy(self)
        if not plan.is_whole:
            other._cut = plan.cut_regions
        if self.then is not None:
            other.then = self.then.cut_out(plan)
        return other

    def start(self, run: Any, stack: ExitStack) -> None:
        """Lay out the rows, if any step is rendered by layers, or start the method that follows."""
        count = len(run.latents)
        if len(self.renderings) not in (1, count):
            raise invalid("documents", len(self.renderings), f"one, or one for each picture, that is {count}")
        self._stack, self._follows = stack, False
        self._end = next((i for i in range(len(run.timesteps)) if not self._acts(run, i)), len(run.timesteps))
        if self._end:
            self.rows = self._laid_out(run)

    def before_step(self, run: Any, index: int) -> None:
        """Let the method act that follows, once the share is over."""
        if index < self._end or self.then is None:
            return
        if not self._follows:
            self.then.start(run, self._stack)
            self._follows = True
        self.then.before_step(run, index)

    def model_inputs(self, run: Run, model_input: Tensor, index: int) -> dict[str, Any]:
        """Return those of the method that follows."""
        return self.then.model_inputs(run, model_input, index) if self.then and self._follows else {}

    def guided(self, run: Run, prediction: Tensor, cond: Tensor, model_input: Tensor, index: int) -> Tensor:
        """Let the method that follows change the prediction."""
        follows = self.then is not None and self._follows
        return self.then.guided(run, prediction, cond, model_input, index) if follows else prediction  # type: ignore[union-attr]

    def after_step(self, run: Any, index: int) -> None:
        """Let the method that follows act after its own steps."""
        if self.then is not None and self._follows:
            self.then.after_step(run, index)

    def _acts(self, run: AnyRun, index: int) -> bool:
        level = run.level(index, "absolute")
        return self.rendering.acts(level, run.level(0, "absolute"))

    def _laid_out(self, run: AnyRun) -> Rows:
        """Return the rows of a run, without what is planted."""
        height, width = int(run.latents.shape[-2]), int(run.latents.shape[-1])
        found = [plan.seen(height, width, self._cut) for plan in self.renderings]
        if missed := [name for seen in found for name in seen.missed]:
            logging.getLogger(__name__).warning(
                "Layered rendering: layers %s are too small to be seen in any of the picture's %s x %s cells, and are "
                "left out. Enlarge them",
                ", ".join(repr(name) for name in dict.fromkeys(missed)), width, height,
            )  # fmt: skip
        found = found * len(run.latents) if len(found) == 1 else found
        parts = [part for seen in found for part in seen.parts]
        picture = [i for i, seen in enumerate(found) for _ in seen.parts]
        return Rows(
            parts,
            torch.tensor(picture, device=run.latents.device),
            torch.cat([seen.masks for seen in found]).to(run.latents),
            torch.tensor([self.rendering.strength * p.led for p in parts]).to(run.latents),
        )

    def _planted(self, run: AnyRun, ask: Callable[[Sequence[str], Tensor], Tensor], sign: float) -> Tensor:
        """Return what is planted in each row, ``[R, C, h, w]``.

        ``ask`` returns the model's predictions for texts, at the run's first latents of the pictures whose numbers
        are given beside them, ``[n]``. ``sign`` is that of the picture in a prediction.
        """
        rows, given = self.rows, run.latents[self.rows.picture]
        if not bool(rows.led.any()):
            return torch.zeros_like(given)
        if self.rendering.asks_vae:
            return vision_guidance(self._given_colours(run), rows.masks, rows.led)
        # Two predictions at the same latents differ by a number times what differs in their pictures.
        cond = sign * ask([p.words for p in rows.parts], rows.picture)
        own = torch.arange(len(run.latents), device=run.latents.device)
        empty = sign * ask([""] * len(own), own)[rows.picture]
        colours = (
            word_colours(cond, empty)
            if self.rendering.colour == "words"
            else noise_colours(given, cond, empty)
        )
        return vision_guidance(colours, rows.masks, rows.led)

    def _in_parts(self, rows: Tensor, model: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the predictions of ``model`` for rows, int64 ``[n]``, from as many passes as memory asks for."""
        done: list[Tensor] = []
        while len(rows):
            part = rows[: self.most]
            try:
                done.append(model(part))
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self.most = len(part) // 2
                continue
            rows = rows[len(part) :]
        return torch.cat(done)

    def _owners(self) -> list[Owner]:
        """Return whose LoRAs act on each row."""
        found = []
        for part, picture in zip(self.rows.parts, self.rows.picture.tolist(), strict=True):
            number = picture if len(self.documents) > 1 else 0
            behind = background_of(self.documents[number])
            found.append((number, part.name or ("" if behind is None else behind.name)))
        return found

    def _spoken(self, text: str, owner: Owner | None) -> Spoken:
        """Return what says how a text is encoded: as the words of a layer whose LoRAs change the text encoder, or as
        any text."""
        return text, owner if owner is not None and self.loras.speaks_for(*owner) else None

    def _given_colours(self, run: AnyRun) -> Tensor:
        """Return the colours that come from pictures, ``[R, C]``."""
        if self.rendering.colour == "constant":
            side = 8 * int(self.model.vae_scale_factor)
            colour = torch.tensor(self.rendering.constant)[:, None, None].expand(3, side, side)
            return unit_vectors(self.encode(colour[None]).mean((2, 3)).to(run.latents)).expand(
                len(self.rows.parts), -1
            )
        of_layers = [self._picture_colours(i) for i in range(len(self.documents))]
        out = []
        for part, picture in zip(self.rows.parts, self.rows.picture.tolist(), strict=True):
            own = of_layers[picture if len(of_layers) > 1 else 0]
            out.append(own.get(part.name, torch.zeros_like(next(iter(own.values())))))
        return torch.stack(out).to(run.latents)

    def _picture_colours(self, document: int) -> dict[str, Tensor]:
        """Return the colour of each layer of a document by its name, ``[C]``."""
        plan, picture = self.renderings[document], flat(self.documents[document])
        latents = self.encode(torch.stack([picture, torch.full_like(picture, 0.5)])).float().cpu()
        masks = mask_pyramid(plan.masks, [(int(latents.shape[-2]), int(latents.shape[-1]))])[0]
        count = len(plan.layers)
        colours = picture_colours(latents[:1].expand(count, -1, -1, -1), latents[1:], masks)
        return {part.name: colour for part, colour in zip(plan.layers, colours, strict=True)}


class LayeredRendering(Rendered):
    """Layered rendering on a UNet. See :class:`Rendered`."""

    _placed: UNetLoras | None = None

    def before_step(self, run: Run, index: int) -> None:
        """Let the method act that follows, with LoRAs of its own, once the share is over."""
        super().before_step(run, index)
        if self._placed is not None and self._follows:
            self._placed.idle = getattr(self.then, "loras", None) is self.loras

    def start(self, run: Run, stack: ExitStack) -> None:
        """Encode the words of all parts."""
        super().start(run, stack)
        if not self._end:
            return
        if run.guidance == 1 and any(p.negative for p in self.renderings[0].layers):
            logging.getLogger(__name__).warning(
                "Classifier-free guidance is off, so negative prompts have no effect"
            )
        self._placed = UNetLoras(self.loras, run, self._cut) if self.loras else None
        if self._placed is not None:
            self._placed.start(stack)
        parts = list(zip(self.rows.parts, self._owners(), strict=True))
        texts: dict[Spoken, None] = dict.fromkeys([("", None), (self.negative, None)])
        texts |= dict.fromkeys(self._spoken(t, owner) for p, owner in parts for t in (p.words, p.negative))
        plain = [text for text in texts if text[1] is None]
        contexts, pooled = encode(self.model, [text for text, _ in plain])
        self._texts = {text: i for i, text in enumerate([*plain, *(x for x in texts if x[1] is not None)])}
        for text, owner in list(self._texts)[len(plain) :]:
            assert owner is not None
            with self.loras.encoding(*owner):
                found, own = encode(self.model, [text])
            contexts += found
            pooled = None if pooled is None or own is None else torch.cat([pooled, own])
        self._contexts, self._pooled = stack_texts(contexts), pooled
        self._kind = str(run.scheduler.config.prediction_type)

    def predict(self, run: Run, index: int, more: dict[str, Any]) -> Tensor | None:
        """Return the fused prediction of the layers while layers are rendered, else None."""
        if index >= self._end:
            return None
        rows, t = self.rows, run.timesteps[index]
        owners = self._owners()
        scaled = run.scheduler.scale_model_input(run.latents, t)
        sigma = sigma_at(run.scheduler.alphas_cumprod, float(t))
        count, guidance = len(scaled), run.guidance
        if index == 0:
            rows.planted = self._planted(
                run,
                lambda texts, picture: self._model(
                    run,
                    t,
                    scaled[picture],
                    texts,
                    count + picture,
                    more,
                    owners if any(texts) else None,
                ),
                1.0 if self._kind == "sample" else -1.0,
            )
        shifted = scaled[rows.picture] + rows.planted
        words, negatives = ([getattr(p, k) for p in rows.parts] for k in ("words", "negative"))
        cond = self._model(run, t, shifted, words, count + rows.picture, more, owners)
        back = left_in(sigma, self._kind) if self.rendering.form == "denoised" else 0.0
        if isinstance(guidance, float | int) and guidance == 1:
            return fuse(cond - back * rows.planted, rows.masks, rows.picture)
        if self.rendering.preset == "fast":
            fused = fuse(cond - back * rows.planted, rows.masks, rows.picture)
            own = torch.arange(count, device=scaled.device)
            uncond = self._model(run, t, scaled, [self.negative] * count, own, more)
            return classifier_free(uncond, fused, guidance)
        uncond = self._model(run, t, shifted, negatives, rows.picture, more, owners)
        scale = guidance[rows.picture] if isinstance(guidance, Tensor) else guidance
        return fuse(classifier_free(uncond, cond, scale) - back * rows.planted, rows.masks, rows.picture)

    def _model(
        self,
        run: Run,
        t: Tensor,
        inputs: Tensor,
        texts: Sequence[str],
        source: Tensor,
        more: dict[str, Any],
        owners: Sequence[Owner] | None = None,
    ) -> Tensor:
        """Return the UNet's prediction for rows with texts of their own, in as many passes as memory asks for.

        ``source`` is the row of the run's own batch, uncond rows before cond rows, from which each row takes its
        further inputs. ``owners`` says whose LoRAs act on each row; None: each acts where its layer is.
        """
        nobody: list[Owner | None] = [None] * len(texts)
        spoken = zip(texts, owners or nobody, strict=True)
        own = torch.tensor([self._texts[self._spoken(*x)] for x in spoken], device=inputs.device)
        if run.concat is not None:
            inputs = torch.cat([inputs, run.concat[source]], 1)

        def predicted(part: Tensor) -> Tensor:
            given = taken(more, source[part], 2 * len(run.latents))
            if run.added:
                given["added_cond_kwargs"] = {k: v[source[part]] for k, v in run.added.items()}
                if self._pooled is not None:
                    given["added_cond_kwargs"]["text_embeds"] = self._pooled[own[part]]
            with run.texts([texts[i] for i in part.tolist()]), ExitStack() as stack:
                if self._placed is not None and owners is not None:
                    stack.enter_context(self._placed.alone([owners[i] for i in part.tolist()]))
                found: Tensor = run.unet(inputs[part], t, self._contexts[own[part]], **given).sample
            return found

        return self._in_parts(torch.arange(len(inputs), device=inputs.device), predicted)
