"""Regional prompts on diffusers UNets: attention processors that hand queries, keys and values to the
core."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from layered_core.attention.attention_maps import AttentionMaps
from layered_core.attention.cross_attention import plain
from layered_core.attention.regional_attention import ChangeWords, KeysAndValues, RegionalAttention
from layered_core.attention.regional_plan import Plan, Region, Settings, plan_regions
from layered_core.document import LayerDocument
from layered_core.errors import invalid
from layered_core.learning.word_values import with_values
from layered_core.noise.guidance import FORMING, of_empty_picture
from layered_core.noise.window import Window, sigma_at
from layered_diffusers.methods.layer_loras import DocumentLoras, UNetLoras
from layered_diffusers.methods.learnt_words import LearntProcessor, is_plain, learnt_places, output
from layered_diffusers.models.adapters import with_tokens
from layered_diffusers.models.loading import StableDiffusion
from layered_diffusers.models.text import context_length, encode, tokenise
from layered_diffusers.sampling import Run, WordedMethod


class RegionalPrompts(WordedMethod):
    """Make each layer's words act where the layer is visible. Sample with :attr:`prompts` in place of the
    prompts, and otherwise as without this method."""

    def __init__(
        self,
        model: StableDiffusion,
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
            model: encodes the words.
            documents: one for each picture, or one for all of them; the canvas is stretched over the picture.
                The embeddings of their recipes must be loaded until the run ends, see
                :func:`~layered_diffusers.models.adapters.embedded`.
            settings: see :class:`~layered_core.attention.regional_plan.Settings`.
            prompts: prompt of the whole picture for each document; empty or None takes the document's words.
                An embedding ``krk`` is written ``<krk>`` in them.
            negative: negative prompt of the whole picture; empty takes the document's own.
            maps: records the attention to the layers' words; works with one document only.
            adapters: folder of the LoRAs that the layers' recipes name.

        Raises:
            LayeredError: see :func:`~layered_core.attention.regional_plan.plan_regions`,
                :func:`~layered_diffusers.models.adapters.with_tokens` and
                :class:`~layered_diffusers.methods.layer_loras.DocumentLoras`.
        """
        self.model, self.settings, self.maps = model, settings or Settings(), maps
        # The documents' own words are without embeddings, as in ComfyUI.
        words = [
            p.strip() or d.words for p, d in zip(prompts or [""] * len(documents), documents, strict=True)
        ]
        own = documents if self.settings.strength > 0 else []
        self.loras = DocumentLoras(model, own, adapters, self.settings.growth)
        acts = self.settings.strength > 0 or maps is not None
        documents = [with_tokens(model, d, needed=acts) for d in documents]
        plan = partial(
            plan_regions,
            settings=self.settings,
            negative=negative,
            tokenise=partial(tokenise, model),
            record=maps is not None,
            cross_attention=True,
        )
        self.plans = [plan(d, prompt=p) for d, p in zip(documents, words, strict=True)]
        if maps is not None and len(documents) != 1:
            raise invalid("maps: number of documents", len(documents), "1")

    def start(self, run: Run, stack: ExitStack) -> None:
        """Put attention processors on the UNet's cross-attentions, if any layer's words act, and let LoRAs act."""
        if len(self.plans) not in (1, len(run.latents)):
            allowed = f"one, or one for each picture, that is {len(run.latents)}"
            raise invalid("documents", len(self.plans), allowed)
        self._alphas, self._guidance = run.scheduler.alphas_cumprod, run.guidance
        height, width = run.latents.shape[-2:]
        # The latents' sides are padded to multiples, so that these divisions leave no remainder.
        self._sizes = {
            (height >> i) * (width >> i): (height >> i, width >> i)
            for i in range(len(run.unet.config.block_out_channels))
        }
        self._halves = [
            [self._half(i, plan, half) for i, plan in enumerate(self.plans)] for half in ("uncond", "cond")
        ]
        self._placed = UNetLoras(self.loras, run, self._cut) if self.loras else None
        if self._placed is not None:
            self._placed.start(stack)
        if any(x is not None for half in self._halves for x in half):
            before = dict(run.unet.attn_processors)
            stack.callback(run.unet.set_attn_processor, before)
            run.unet.set_attn_processor(
                {name: _Processor(self, name, p) if ".attn2." in name else p for name, p in before.items()}
            )

    def before_step(self, run: Run, index: int) -> None:
        """Note the step's sigma, and set the guidance per cell if the settings ask for more in the layers."""
        self._sigma = sigma_at(self._alphas, float(run.timesteps[index]))
        if self._placed is not None:
            self._placed.forming = self._sigma > FORMING
        if self.settings.guidance != 1 and self._guidance != 1:
            size = (int(run.latents.shape[-2]), int(run.latents.shape[-1]))
            factors = [
                torch.ones(size) if half is None else half.guidance(size, self._sigma)
                for half in self._halves[1]
            ]
            run.guidance = self._guidance * torch.stack(factors)[:, None].to(run.latents)

    def guided(self, run: Run, prediction: Tensor, cond: Tensor, model_input: Tensor, index: int) -> Tensor:
        """Rescale the prediction in the layers, if the settings ask for it and there is guidance."""
        if not self.settings.rescale or self._guidance == 1:
            return prediction
        empty = of_empty_picture(model_input, self._sigma, run.scheduler.config.prediction_type)
        changed = prediction.clone()
        own = torch.arange(len(prediction)).chunk(len(self._halves[1]))
        for rows, half in zip(own, self._halves[1], strict=True):
            if half is not None:
                changed[rows] += half.rescaling(prediction[rows], cond[rows], empty[rows], self._sigma)
        return changed

    def mix(
        self,
        block: str,
        attn: Attention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        base: Tensor,
        number: int | None = None,
    ) -> Tensor:
        """Return the attention's output for both halves of the batch, ``[2 B, N, C]``, uncond rows before
        cond rows. The arguments are those of :class:`RegionalAttention`; ``number`` is that of the block among the
        cross-attentions, None without learnt words."""
        out = base.clone()

        def project(x: Tensor) -> tuple[Tensor, Tensor]:
            return attn.to_k(x), attn.to_v(x)

        for rows, half in zip(torch.arange(len(q)).chunk(2), self._halves, strict=True):
            for i, (own, attention) in enumerate(
                zip([rows] if len(half) == 1 else rows.split(1), half, strict=True)
            ):
                if attention is not None:
                    at = slice(int(own[0]), int(own[-1]) + 1)
                    change = None if number is None else partial(self._with_learnt, attention, number)
                    texts = None
                    if self._placed is not None:
                        texts = _changed(self._placed.texts(block, attention, i, q, project), change)
                    out[at] = attention(
                        q[at], k[at], v[at], base[at], size=self._sizes[q.shape[1]], sigma=self._sigma,
                        heads=attn.heads, block=block, project=project, attend=plain(attn.heads), texts=texts,
                        change=change,
                    )  # fmt: skip
        return out

    def _with_learnt(
        self, half: RegionalAttention, block: int, regions: Sequence[int], k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the values of learnt words to keys and values ``[n, T, D]`` of some regions' texts."""
        return with_values(k, v, [learnt_places(self.model, half.regions[i].text) for i in regions], block)

    def _half(self, document: int, plan: Plan, half: str) -> RegionalAttention | None:
        regions = plan.cond if half == "cond" else plan.uncond
        maps = self.maps if half == "cond" else None
        if not any(r.acts for r in regions) and not (regions and maps is not None):
            return None
        apart = [bool(r.text) and self.loras.speaks_for(document, r.name) for r in regions]
        texts = list(
            dict.fromkeys(r.text for r, own in zip(regions, apart, strict=True) if r.text and not own)
        )
        shared = dict(zip(texts, encode(self.model, texts)[0], strict=True)) if texts else {}
        contexts = [
            self._encoded(document, r) if own else shared.get(r.text)
            for r, own in zip(regions, apart, strict=True)
        ]
        tokens = context_length(self.model, plan.prompt if half == "cond" else plan.negative)
        window = Window.of_shares(self._alphas, self.settings.start, self.settings.end)
        return RegionalAttention(
            regions, self.settings, contexts, tokens, window, maps, cut=self._cut,
        )  # fmt: skip

    def _encoded(self, document: int, region: Region) -> Tensor:
        """Encode a region's words with its layer's own LoRAs."""
        with self.loras.encoding(document, region.name):
            return encode(self.model, [region.text])[0][0]


def _changed(texts: KeysAndValues | None, change: ChangeWords | None) -> KeysAndValues | None:
    """Return the regions' keys and values, changed."""
    if texts is None or change is None:
        return texts
    pairs = [
        (k, v) if k is None or v is None else tuple(x[0] for x in change([i], k[None], v[None]))
        for i, (k, v) in enumerate(zip(*texts, strict=True))
    ]
    return [k for k, _ in pairs], [v for _, v in pairs]


class _Processor:
    """An attention processor whose regional part is computed by the core. The processor that was installed
    before it keeps its effect."""

    def __init__(self, method: RegionalPrompts, name: str, before: Any) -> None:
        self.method, self.name, self.before = method, name, before

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None, **more: Any
    ) -> Tensor:  # fmt: skip
        # With an image adapter, the encoded prompt is the first of several contexts.
        words = (
            encoder_hidden_states[0] if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states
        )
        q, k, v = attn.to_q(hidden_states), attn.to_k(words), attn.to_v(words)
        learnt = self.before if isinstance(self.before, LearntProcessor) else None
        if learnt is not None:
            k, v = learnt.change(k, v)
        base = plain(attn.heads)(q, k, v, None)
        mixed = self.method.mix(self.name, attn, q, k, v, base, None if learnt is None else learnt.block)
        if is_plain(self.before if learnt is None else learnt.before) and attention_mask is None:
            return output(attn, mixed)
        theirs: Tensor = self.before(attn, hidden_states, encoder_hidden_states, attention_mask, **more)
        return theirs + output(attn, mixed) - output(attn, base)
