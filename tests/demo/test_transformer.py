"""The storybook transformer is diffusers' Flux, learns from the UNet, and its training resumes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel

from demo.train.diffusion import frozen_text_encoder, frozen_vae, prepare
from demo.train.loop import Trainer
from demo.train.tokenizer import END
from demo.train.transformer import (
    RecordingJointAttention,
    Teacher,
    length,
    matrices,
    new_transformer,
    noise_levels,
    positions,
    velocity,
)
from demo.train.unet import Replay
from demo.train.words import encode, pad, word_ids
from demo.world.places import MODEL


@pytest.fixture(scope="module")
def batch():
    """Return noisy latents, levels, text, and noise minus latents of eight drawn scenes."""
    torch.manual_seed(0)
    ids = word_ids(MODEL / "tokenizer")
    replay = Replay(frozen_vae(MODEL), np.random.default_rng(0), capacity=8)
    replay.add(8)
    latents, tokens, _, _ = replay.batch(8, ids)
    with torch.no_grad():
        context, pooled = frozen_text_encoder(MODEL)(tokens)[:2]
    noise, t = torch.randn_like(latents), torch.full((8,), 0.5)
    return SimpleNamespace(
        x=torch.lerp(latents, noise, 0.5), t=t, context=context, pooled=pooled, target=noise - latents
    )


def recorded(model):
    record = RecordingJointAttention()
    model.set_attn_processor(record)
    return record


@torch.no_grad()
def test_training_computes_what_diffusers_computes(tmp_path):
    torch.manual_seed(0)
    model = new_transformer()
    for parameter in model.parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(tmp_path)
    x, t = torch.randn(2, 4, 16, 12), torch.tensor([0.3, 0.9])
    context, pooled = torch.randn(2, 20, 64), torch.randn(2, 64)
    record = recorded(model)
    own = velocity(model, record, x, t, context, pooled)

    plain = FluxTransformer2DModel.from_pretrained(tmp_path)
    tokens = x.unflatten(3, (6, 2)).unflatten(2, (8, 2)).permute(0, 2, 4, 1, 3, 5).reshape(2, 48, 16)
    out = plain(tokens, context, pooled, t, positions(8, 6, 0), torch.zeros(20, 3)).sample
    out = out.reshape(2, 8, 6, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 16, 12)
    torch.testing.assert_close(own, out, atol=1e-4, rtol=0)
    assert [tuple(m.shape) for m in record.maps] == [(2, 48, 20)] * 6


def test_it_is_small_and_says_nothing_before_training():
    model = new_transformer()
    assert sum(p.numel() for p in model.parameters()) * 2 <= 20e6
    v = velocity(
        model,
        recorded(model),
        torch.randn(1, 4, 16, 16),
        torch.ones(1),
        torch.randn(1, 9, 64),
        torch.ones(1, 64),
    )
    assert torch.equal(v, torch.zeros(1, 4, 16, 16))


def test_the_teacher_predicts_noise_minus_latents(batch):
    unet = UNet2DConditionModel.from_pretrained(MODEL / "unet").float()
    prepare(unet)
    v = Teacher(unet).velocity(batch.x, batch.t, batch.context)
    assert batch.target.square().mean() > 1.5
    assert (v - batch.target).square().mean() < 0.5


def test_steps_lower_the_loss_and_resuming_goes_on_exactly(batch, tmp_path):
    torch.manual_seed(0)
    model = new_transformer()
    record = recorded(model)

    def trainer(model):
        return Trainer(
            model, tmp_path, 0, 1, minutes=600, rate=2e-3, average=0.9, warmup=1, matrices=matrices(model)
        )

    def step(trainer):
        v = velocity(trainer.model, record, batch.x, batch.t, batch.context[:, :24], batch.pooled)
        loss = (v - batch.target).square().mean()
        trainer.update(loss, 8)
        return float(loss.detach())

    first = trainer(model)
    losses = [step(first) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    first.save()
    again = new_transformer()
    again.set_attn_processor(record)
    second = trainer(again)
    assert (second.step, second.samples) == (12, 96)
    for _ in range(2):
        assert step(second) == pytest.approx(step(first), rel=1e-4)


def test_noise_levels_cover_all_of_the_range():
    torch.manual_seed(0)
    t = noise_levels(4000)
    assert 0 < float(t.min()) < 0.05
    assert 0.97 < float(t.max()) < 1
    assert float(t.median()) == pytest.approx(0.6, abs=0.01)  # odds of 1.5


def test_texts_are_cut_after_the_longest():
    ids = word_ids(MODEL / "tokenizer")
    tokens = torch.tensor([pad(encode(words, ids)) for words in ("a red ball", "a blue star at night")])
    rng = np.random.default_rng(0)
    lengths = [length(tokens, rng) for _ in range(400)]
    assert min(lengths) == 7  # start, five words, end
    assert tokens[1, 6] == END
    assert max(lengths) > 70
    assert 0.75 < np.mean(np.array(lengths) == 7) < 0.85
