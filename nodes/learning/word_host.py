"""ComfyUI's side of learning words: copies of a MODEL and a CLIP that predict noise for texts with learnt words."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.sd
import comfy.sd1_clip
import torch
from torch import Tensor

from ...layered_core.attention.words import Token
from ...layered_core.errors import LayeredError
from ...layered_core.learning.learner import Learnable
from ...layered_core.learning.lesson import Drawn, LearnSettings, Subject
from ...layered_core.learning.training import Prediction, attended, by_sigma, said_of
from ...layered_core.learning.word_values import Place, find_place, with_values, zeros
from ...layered_core.learning.wording import Text, plain_text, with_word
from ..attention.embeddings import EMBEDDING
from ..attention.unet_run import cross_attentions, key_widths

ENCODERS = ("l", "g", "h")
"""ComfyUI's names of the CLIP text encoders whose words can be learnt."""

_MARK = "layered-learnt-word-"
"""Stands, with the number of a subject, for its word in the texts of the training."""

_MAPPED = (64, 1024)
"""Least and greatest number of pixels of a feature map whose attention is recorded."""

_NO_VALUES = zeros("", [1])
"""Stands in places of words that have no values."""


class WordHost:
    """A :class:`~layered_core.learning.training.Host`: copies of a MODEL and a CLIP, with the words that are learnt.

    Everything here works outside inference mode alone.
    """

    def __init__(
        self, model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, subjects: Sequence[Subject],
        settings: LearnSettings, size: tuple[int, int],
    ) -> None:  # fmt: skip
        """Make the words at their start.

        Args:
            model, clip: copies, loaded.
            subjects: layers and the names of their words.
            settings: how they are learnt.
            size: H, W of the pictures, pixels.
        """
        self._model, self._clip, self._size = model, clip, size
        self._subjects, self._settings = subjects, settings
        self._base = model.model
        self._sigmas = self._base.model_sampling.sigmas.to(model.load_device, torch.float32)
        self._blocks = cross_attentions(self._base.diffusion_model)
        self._places: list[list[Place]] = []
        self._watched: list[tuple[int, Sequence[int]]] = []
        self._maps: list[Tensor] = []
        self._sizes: list[tuple[int, int]] = []
        self.prediction = prediction_of(model)
        self.alphas = 1 / (self._sigmas.square() + 1)
        clip.cond_stage_model.reset_clip_options()
        clip.cond_stage_model.set_clip_options({"execution_device": clip.patcher.load_device})
        if clip.layer_idx is not None:
            clip.cond_stage_model.set_clip_options({"layer": clip.layer_idx})
        with torch.no_grad():
            self.words = [self._start(subject) for subject in subjects]
        clip.tokenizer = _with_words(clip.tokenizer, self.words)

    @property
    def tables(self) -> list[Tensor]:
        """The text encoders' embeddings."""
        return [self._table(name) for name in self._names]

    def training(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: the copies are for the training alone."""
        return nullcontext()

    def predict(
        self, noisy: Tensor, t: Tensor, drawn: Sequence[Drawn], record: Sequence[tuple[int, int]]
    ) -> Prediction:
        """Return what the model says, see :class:`~layered_core.learning.training.Host`."""
        encoded = [self._encode(self._text(x), places=True) for x in drawn]
        found = [places for *_, places in encoded]
        self._places = [list(at.values()) for at in found]
        self._watched = [(row, found[row][number].word) for row, number in record]
        self._maps, self._sizes = [], []
        context, alpha = torch.cat([x for x, *_ in encoded]), self.alphas[t]
        ours = {block: partial(self._attend, i) for i, block in enumerate(self._blocks)}
        clean = self._base.apply_model(
            by_sigma(noisy, alpha), self._sigmas[t], c_crossattn=context,
            transformer_options={"patches_replace": {"attn2": ours}},
            **self._more([pooled for _, pooled, _ in encoded]),
        )  # fmt: skip
        self._watched = []  # the backward pass may compute the blocks again
        return Prediction(
            said_of(self.prediction, noisy, clean, alpha), tuple(self._maps), tuple(self._sizes)
        )

    @torch.no_grad()
    def picture(self, number: int, seed: int, shape: Sequence[int], steps: int, cfg: float) -> Tensor:
        """Sample the latents ``[1, C, h, w]`` of a picture of a subject's words with its learnt word."""
        words, pooled, places = self._encode((number, f" {self._subjects[number].prompt}"), places=True)
        empty, pooled_empty, _ = self._encode((), places=False)
        model = self._model.clone()
        for i, block in enumerate(self._blocks):
            model.set_model_attn2_replace(partial(self._attend_half, i, list(places.values())), *block)
        latent = torch.zeros(1, *shape)
        halves = [[[x, {"pooled_output": y}]] for x, y in ((words, pooled), (empty, pooled_empty))]
        noise = comfy.sample.prepare_noise(latent, seed)
        return comfy.sample.sample(
            model, noise, steps, cfg, "euler", "normal", *halves, latent, seed=seed, disable_pbar=True
        )

    # --- words ---

    @property
    def _names(self) -> list[str]:
        return list(self._clip.tokenize(""))

    def _table(self, name: str) -> Tensor:
        encoder = getattr(self._clip.cond_stage_model, f"clip_{name}")
        table: Tensor = encoder.transformer.get_input_embeddings().weight
        return table

    def _start(self, subject: Subject) -> Learnable:
        """Return a word at its start: the mean vector of the words to begin with, and values that change nothing."""
        device, pieces = self._model.load_device, self._clip.tokenize(subject.prompt, return_word_ids=True)
        vectors, spreads = {}, {}
        for name, chunks in pieces.items():
            told = [piece[0] for chunk in chunks for piece in chunk if piece[2]]
            table = self._table(name).float()
            rows = torch.stack([x.to(table) if isinstance(x, Tensor) else table[x] for x in told])
            own = subject.word if len(pieces) == 1 else f"clip_{name}"
            vectors[own] = rows.mean(0, keepdim=True).repeat(self._settings.vectors, 1).to(device)
            spreads[own] = float(rows.std())
        if self._settings.form == "word":
            return Learnable(subject.word, vectors, spreads)
        chunks = next(iter(pieces.values()))
        at = [i for i, piece in enumerate(piece for chunk in chunks for piece in chunk) if piece[2]]
        words = self._clip.cond_stage_model.encode_token_weights(self._clip.tokenize(subject.prompt))[0]
        told = words[0, at].to(device, self._base.get_dtype_inference())
        spread = [
            tuple(float(to(told).float().std()) for to in (x.to_k, x.to_v)) for x in self._blocks.values()
        ]
        values = zeros(subject.noun, key_widths(self._base.diffusion_model)).to(
            torch.zeros((), device=device)
        )
        return Learnable(subject.word, vectors, spreads, values, spread)

    # --- texts ---

    def _text(self, drawn: Drawn) -> Text:
        """Return the text of a picture; one that is too long gives way to the words of the subject that it shows
        first."""
        if self._fits(drawn.text):
            return drawn.text
        first = drawn.shown[0]
        text = with_word(self._subjects[first].prompt, first, before_noun=False)
        if not self._fits(text):
            raise LayeredError(
                f"layer {self._subjects[first].layer!r}: its words are too long for the text encoder. Shorten them"
            )
        return text

    def _fits(self, text: Text) -> bool:
        return all(len(chunks) == 1 for chunks in self._clip.tokenize(self._written(text)).values())

    def _written(self, text: Text) -> str:
        return plain_text(text, [f"{EMBEDDING}{_MARK}{i}" for i in range(len(self._subjects))])

    def _encode(self, text: Text, places: bool) -> tuple[Tensor, Tensor | None, dict[int, Place]]:
        """Return an encoded text ``[1, T, C]``, its pooled vector ``[1, C']``, and where the subjects' words stand."""
        pieces = self._clip.tokenize(self._written(text))
        context, pooled = self._clip.cond_stage_model.encode_token_weights(pieces)[:2]
        return context, pooled, self._find(text) if places else {}

    def _find(self, text: Text) -> dict[int, Place]:
        pieces = next(iter(self._clip.tokenize(self._written(text), return_word_ids=True).values()))[0]
        rows = {
            row.data_ptr(): (number, i)
            for number, word in enumerate(self.words)
            for i, row in enumerate(word.vectors[self._key(word)])
        }
        tokens = [
            Token(rows.get(x.data_ptr(), "") if isinstance(x, Tensor) else x, i)
            for i, (x, _, is_word) in enumerate(pieces)
            if is_word
        ]
        found = {}
        for number in {piece for piece in text if isinstance(piece, int)}:
            own = [(number, i) for i in range(self._settings.vectors)]
            noun = self._clip.tokenize(self._subjects[number].noun, return_word_ids=True)
            ids = [piece[0] for piece in next(iter(noun.values()))[0] if piece[2]]
            place = find_place(tokens, own, ids, self.words[number].values or _NO_VALUES, len(pieces))
            if place is not None:
                found[number] = place
        return found

    def _key(self, word: Learnable) -> str:
        """Return the name of the vectors that the first of the text encoders reads."""
        return word.name if len(word.vectors) == 1 else f"clip_{self._names[0]}"

    # --- the model ---

    def _more(self, pooled: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Return SDXL's further input."""
        if pooled[0] is None:
            return {}
        height, width = self._size
        device = self._model.load_device
        y = self._base.encode_adm(device=device, pooled_output=torch.cat(pooled), width=width, height=height)
        return {} if y is None else {"y": y.to(device)}

    def _attend(self, number: int, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        """Return the output of a cross-attention in training, with the values of the learnt words."""
        heads = extra["n_heads"]
        if self._settings.form == "values":
            k, v = with_values(k, v, self._places, number)
        if self._watched and _MAPPED[0] <= q.shape[1] <= _MAPPED[1]:
            self._maps.append(attended(q, k, heads, self._watched))
            self._sizes.append(tuple(extra["activations_shape"][-2:]))
        return _attention(q, k, v, extra)

    def _attend_half(
        self, number: int, places: list[Place], q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]
    ) -> Tensor:
        """Return the output of a cross-attention of a preview: the learnt word stands in the conditional half."""
        if self._settings.form == "values":
            halves = extra["cond_or_uncond"]
            rows = [places if half == 0 else [] for half in halves for _ in range(len(q) // len(halves))]
            k, v = with_values(k, v, rows if len(rows) > 1 else [rows[0]], number)
        return _attention(q, k, v, extra)


def prediction_of(model: comfy.model_patcher.ModelPatcher) -> str:
    """Return what a MODEL predicts, by the core's names; empty if words cannot be learnt with it."""
    sampling = model.get_model_object("model_sampling")
    if not hasattr(sampling, "sigmas") or isinstance(sampling, comfy.model_sampling.EDM):
        return ""
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        return "v_prediction"
    if isinstance(sampling, (comfy.model_sampling.X0, comfy.model_sampling.CONST)):
        return ""
    return "epsilon" if isinstance(sampling, comfy.model_sampling.EPS) else ""


def _attention(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
    out: Tensor = comfy.ldm.modules.attention.optimized_attention(
        q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"], transformer_options=extra
    )
    return out


def _with_words(tokenizer: Any, words: Sequence[Learnable]) -> Any:
    """Return a copy of a CLIP's tokenizer that knows the words by their marks."""
    whole = copy.copy(tokenizer)
    for name, part in vars(tokenizer).items():
        if isinstance(part, comfy.sd1_clip.SDTokenizer):
            own = copy.copy(part)
            own.embedding_directory = part.embedding_directory or []
            vectors = [word.vectors.get(name, next(iter(word.vectors.values()))) for word in words]
            own._try_get_embedding = partial(_find_word, part._try_get_embedding, vectors)
            setattr(whole, name, own)
    return whole


def _find_word(
    others: Callable[[str], tuple[Any, ...]], vectors: Sequence[Tensor], text: str
) -> tuple[Any, ...]:
    """Return the vectors of the word that a text begins with, as ComfyUI's tokenizer finds embeddings."""
    mark = re.match(rf"{_MARK}(\d+)(?!\S)", text)
    if mark is None:
        return others(text)
    return vectors[int(mark[1])], mark[0], text[mark.end() :].strip()
