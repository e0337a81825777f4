"""Train the storybook transformer: Flux's double and single blocks at small width, by flow matching.

It takes the text encoder's hidden states and pooled text, and the latents of the storybook VAE in patches of
2 x 2. Noise levels are logit-normal (Esser et al. 2024, arXiv 2403.03206). The loss on attention is that of
the UNet (``unet.py``), on what the picture's tokens read of every noun.

For the first part of the time the target is not the noise minus the latents of one scene but what the UNet
predicts, the mean over all scenes that fit the words. A target without that chance needs far fewer samples.

One text has as many tokens as the longest of its batch, or some end tokens more: ComfyUI pads to 77, and a
layer's words are better not padded at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel

from demo.train.diffusion import SCHEDULE, frozen_text_encoder, frozen_vae, prepare
from demo.train.loop import Trainer, device, half_precision, start_from
from demo.train.tokenizer import END
from demo.train.unet import Replay, attention_loss
from demo.train.words import LENGTH, WIDTH, encode, pad, word_ids
from demo.world.judge import Judge
from demo.world.places import MODEL
from demo.world.scenes import caption, is_held_out, random_things
from demo.world.vocabulary import BACKGROUNDS, Thing

CHANNELS, PATCH = 4, 2
SHIFT = 1.5
"""Factor of the odds of a noise level, t / (1 - t): the median of training, and the schedule of sampling."""

TAUGHT = 0.8
"""Share of the time in which the UNet gives the target."""


def new_transformer() -> FluxTransformer2DModel:
    """Return an untrained transformer of width 192 whose blocks pass everything on unchanged at first."""
    model = FluxTransformer2DModel(
        in_channels=CHANNELS * PATCH**2,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=3,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(8, 28, 28),
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if "norm" in name or name == "proj_out":
                nn.init.zeros_(module.weight)
    return model


def matrices(model: FluxTransformer2DModel) -> list[nn.Parameter]:
    """Return the weights of attention and feed-forward, which Muon trains; the others are AdamW's."""
    return [
        p
        for n, p in model.named_parameters()
        if "transformer_blocks" in n and p.ndim == 2 and ".norm" not in n
    ]


class RecordingJointAttention:
    """Flux's attention without the fused kernel, whose backward pass is slow on CPUs.

    ``maps`` records what the picture's tokens read of the text's, averaged over heads, ``[B, N, T]`` a call.
    """

    def __init__(self) -> None:
        self.maps: list[Tensor] = []
        self.length = 0
        """Number of text tokens T, the first of all."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: None,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend as diffusers' ``FluxAttnProcessor`` does."""
        q, k, v = _heads(attn, hidden_states, "to_q", "to_k", "to_v", attn.norm_q, attn.norm_k)
        if encoder_hidden_states is not None:
            names = ("add_q_proj", "add_k_proj", "add_v_proj")
            text = _heads(attn, encoder_hidden_states, *names, attn.norm_added_q, attn.norm_added_k)
            q, k, v = (torch.cat(pair, 1) for pair in zip(text, (q, k, v), strict=True))
        q, k = rotated(q, image_rotary_emb), rotated(k, image_rotary_emb)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        probabilities = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
        self.maps.append(probabilities[:, :, self.length :, : self.length].mean(1))
        out = (probabilities.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out
        return attn.to_out[0](out[:, self.length :]), attn.to_add_out(out[:, : self.length])


def _heads(
    attn: Any, x: Tensor, q: str, k: str, v: str, norm_q: nn.RMSNorm, norm_k: nn.RMSNorm
) -> list[Tensor]:
    parts = [getattr(attn, name)(x).unflatten(-1, (attn.heads, -1)) for name in (q, k, v)]
    return [normed(parts[0], norm_q), normed(parts[1], norm_k), parts[2]]


def normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Compute an RMS norm from plain operations, several times as fast as the module in half precision."""
    assert norm.eps is not None
    return x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight.to(x.dtype)


def rotated(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs of channels of ``x`` [B, N, heads, D] by angles whose cosines and sines are [N, D]."""
    cos, sin = (r[:, None].to(x.dtype) for r in rotary)
    turn = torch.zeros(2, 2, dtype=x.dtype, device=x.device)
    turn[1, 0], turn[0, 1] = -1, 1
    return x * cos + (x @ torch.block_diag(*[turn] * (x.shape[-1] // 2))) * sin


def positions(height: int, width: int, length: int) -> Tensor:
    """Return Flux's positions [T + N, 3] of ``length`` text tokens, all 0, and of height x width patches."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
    return torch.cat([torch.zeros(length, 3), grid.float()]).to(device())


def velocity(
    model: FluxTransformer2DModel,
    record: RecordingJointAttention,
    x: Tensor,
    t: Tensor,
    context: Tensor,
    pooled: Tensor,
) -> Tensor:
    """Predict noise minus latents.

    This is the model's own ``forward``, which in half precision would round the noise levels.

    Args:
        model: its attention processor is ``record``.
        record: gets the attention of every block.
        x: noisy latents [B, 4, h, w].
        t: noise levels 0..1, [B].
        context: hidden states of the text [B, T, C].
        pooled: pooled text [B, C].
    """
    height, width = x.shape[-2] // PATCH, x.shape[-1] // PATCH
    record.length, record.maps = context.shape[1], []
    rotary = model.pos_embed(positions(height, width, record.length))
    patches = nn.functional.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2)
    tokens, text = model.x_embedder(patches), model.context_embedder(context)
    level = model.time_text_embed(1000 * t, pooled.float())
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        text, tokens = block(
            hidden_states=tokens, encoder_hidden_states=text, temb=level, image_rotary_emb=rotary
        )
    out = model.proj_out(model.norm_out(tokens, level))
    return nn.functional.pixel_shuffle(out.transpose(1, 2).unflatten(2, (height, width)), PATCH)


@torch.no_grad()
def sample(
    model: FluxTransformer2DModel,
    record: RecordingJointAttention,
    noise: Tensor,
    context: Tensor,
    pooled: Tensor,
    steps: int = 16,
    guidance: float = 3,
) -> Tensor:
    """Sample latents from ``noise`` [B, 4, h, w] by Euler steps with classifier-free guidance.

    ``context`` and ``pooled``, as :func:`velocity` takes them, hold B prompts, then B times the empty prompt.
    """
    x = noise
    levels = torch.linspace(1, 0, steps + 1)
    levels = SHIFT * levels / (1 + (SHIFT - 1) * levels)
    for level, following in zip(levels[:-1], levels[1:], strict=True):
        t = level.to(device()).expand(2 * len(x))
        worded, plain = velocity(model, record, torch.cat([x, x]), t, context, pooled).float().chunk(2)
        x = x + (following - level) * (plain + guidance * (worded - plain))
    return x


def noise_levels(count: int) -> Tensor:
    """Draw ``count`` noise levels, one from each of as many equally likely ranges."""
    share = (torch.randperm(count) + torch.rand(count)) / count
    return torch.sigmoid(np.log(SHIFT) + 1.1 * torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4))).to(device())


def length(tokens: Tensor, rng: np.random.Generator) -> int:
    """Return how many of 77 token ids [B, 77] to use: those of the longest text, in one batch of five more."""
    longest = int((tokens == END).int().argmax(1).max()) + 1
    return longest if rng.random() < 0.8 else int(rng.integers(longest, LENGTH + 1))


class Teacher:
    """The trained UNet as a predictor of flow matching's velocity."""

    HIGHEST = 0.93
    """Greatest noise level that the UNet knows."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self.alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(device())

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Predict noise minus latents [B, 4, h, w]; the arguments are those of :func:`velocity`.

        The UNet knows ``x`` at unit variance, and predicts v (Salimans and Ho 2022, arXiv 2202.00512).
        """
        signal, noise = (
            level.view(-1, 1, 1, 1) / torch.hypot(t, 1 - t).view(-1, 1, 1, 1) for level in (1 - t, t)
        )
        steps = (self.alphas - signal.square().flatten(1)).abs().argmin(1)
        x = x * (signal + noise)
        v = self.unet(x.contiguous(memory_format=torch.channels_last), steps, context).sample.float()
        return (noise * x + signal * v) - (signal * x - noise * v)


class Quality:
    """Held-out prompts of one or two objects, on which the judge measures a model.

    Args:
        text: the frozen text encoder.
        vae: the frozen VAE.
        ids: token ids of words.
        count: number of prompts.
        objects: number of objects in each.
    """

    def __init__(
        self, text: CLIPTextModel, vae: AutoencoderTiny, ids: dict[str, int], count: int, objects: int
    ) -> None:
        rng = np.random.default_rng([1, objects])
        self.vae, self.judge = vae, Judge.load().to(device())
        self.wanted: list[tuple[str, list[Thing]]] = []
        rows: list[list[int]] = []
        while len(rows) < count:
            background, things = random_things(rng, objects)
            words = caption([t.words for t in things], BACKGROUNDS[background][0])
            if is_held_out(words) and len({(t.colour, t.kind) for t in things}) == objects:
                self.wanted.append((background, things))
                rows.append(pad(encode(words, ids)))
        tokens = torch.tensor(rows + [pad([])] * count, device=device())
        tokens = tokens[:, : int((tokens == END).int().argmax(1).max()) + 1]
        with torch.no_grad():
            self.context, self.pooled = text(tokens)[:2]

    @torch.no_grad()
    def exact(
        self,
        model: FluxTransformer2DModel,
        record: RecordingJointAttention,
        steps: int = 16,
        guidance: float = 3,
    ) -> float:
        """Return the share of pictures with the right landscape, and just the right objects."""
        x = torch.randn(len(self.wanted), CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0))
        x = x.to(device())
        with half_precision():
            x = sample(model, record, x, self.context, self.pooled, steps, guidance)
            pictures = self.vae.decoder(x.contiguous(memory_format=torch.channels_last))
        pictures = pictures.float().clamp(-1, 1) / 2 + 0.5
        verdicts = self.judge.look(pictures)
        right = [
            v.background == background and v.shows(things)
            for v, (background, things) in zip(verdicts, self.wanted, strict=True)
        ]
        return round(sum(right) / len(right), 3)


def train(rank: int, processes: int, options: Any) -> None:
    """Train the transformer in one process."""
    torch.manual_seed(options.seed + rank)
    export = Path(options.folder) / "export"
    parts = export if (export / "unet").exists() else MODEL
    ids = word_ids(parts / "tokenizer")
    vae, text = frozen_vae(parts), frozen_text_encoder(parts)
    unet = UNet2DConditionModel.from_pretrained(parts / "unet").float().requires_grad_(False)
    prepare(unet)
    teacher = Teacher(unet)
    model = new_transformer()
    start_from(model, MODEL / "transformer" / "diffusion_pytorch_model.safetensors", options.fresh)
    record = RecordingJointAttention()
    model.set_attn_processor(record)
    model.to(device())
    trainer = Trainer(
        model,
        Path(options.folder) / "transformer",
        rank,
        processes,
        minutes=options.minutes,
        rate=options.rate or 1.5e-3,
        average=0.999,
        warmup=300,
        matrices=matrices(model),
    )
    tests = {
        name: Quality(text, vae, ids, 48, objects)
        for name, objects in (("one_object_exact", 1), ("two_object_exact", 2))
    }
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    replay = Replay(vae, rng)
    replay.add(256)
    saves, going = 0, True
    while going:
        count = options.scale * (16 if trainer.progress < TAUGHT else 32)
        if trainer.step % (4 if replay.filled < 4000 else 16) == 0:
            replay.add(count // 2)  # eight scenes at once are encoded twice as fast as one by one
        latents, tokens, masks, nouns = replay.batch(count, ids)
        noise, t = torch.randn_like(latents), noise_levels(count)
        with half_precision():
            with torch.no_grad():
                context, pooled = text(tokens)[:2]
            x = torch.lerp(latents, noise, t.view(-1, 1, 1, 1))
            v = velocity(model, record, x, t, context[:, : length(tokens, rng)], pooled)
            target = plain = noise - latents
            if trainer.progress < TAUGHT:
                known = (t < teacher.HIGHEST).view(-1, 1, 1, 1)
                target = torch.where(known, teacher.velocity(x, t, context), plain)
        error = (v.float() - target).square().mean()
        attention = attention_loss([m.float() for m in record.maps], masks, nouns, 1 - t)
        going = trainer.update(
            error + 0.3 * attention,
            count,
            v=(v.detach().float() - plain).square().mean(),
            taught=error.detach(),
            attention=attention.detach(),
        )
        if trainer.due(4.0) or not going:
            saves += 1
            if rank == 0:
                averaged = new_transformer()
                averaged.load_state_dict({k: v.cpu() for k, v in trainer.averaged().items()})
                if saves % 5 == 0 or not going:
                    averaged.set_attn_processor(record)
                    averaged.to(device())
                    trainer.record(**{name: test.exact(averaged, record) for name, test in tests.items()})
                averaged.cpu().half().save_pretrained(export / "transformer")
                FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(export / "transformer_scheduler")
            trainer.save()
