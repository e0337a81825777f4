"""The units of the SD1.5 files have the published keys, and compute the equations of the authors' code, which
are written out here a second time in a slow form."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from layered_core.attention.cross_attention import plain
from layered_core.errors import LayeredError
from layered_core.transparency import layer_diffuse_frames as attention_sharing
from layered_core.transparency.layer_diffuse_frames import (
    AttentionSharing,
    Base,
    ControlEncoder,
    SharingUnit,
    check_rows,
    frame_contexts,
    is_attention_sharing,
    signal_for,
)

KEYS = json.loads((Path(__file__).parents[2] / "data" / "sd15_attention_sharing_keys.json").read_text())
HEADS = 2


def meta(shapes):
    return {k: torch.empty(s, dtype=torch.float16, device="meta") for k, s in shapes.items()}


@pytest.mark.parametrize("name", sorted(KEYS))
def test_a_published_file_fills_the_units_to_the_last_key_and_shape(name):
    weights = meta(KEYS[name])
    assert is_attention_sharing(weights)
    network = AttentionSharing.from_weights(weights, name)
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == KEYS[name]
    assert network.frames == {"layer_sd15_transparent_attn": 1, "layer_sd15_joint": 3}.get(name, 2)
    assert (network.encoder is not None) == ("2" in name)
    assert len(network.units) == 32
    assert next(network.parameters()).dtype == torch.float16


def test_a_missing_an_unexpected_and_a_misshapen_tensor_are_listed():
    weights = meta(KEYS["layer_sd15_joint"])
    del weights["hookers.layers.3.temporal_o.bias"]
    weights["hookers.layers.3.other"] = torch.empty(1, device="meta")
    weights["hookers.layers.5.temporal_n.bias"] = torch.empty(7, device="meta")
    with pytest.raises(LayeredError) as error:
        AttentionSharing.from_weights(weights, "cut.safetensors")
    for part in (
        "missing keys: hookers.layers.3.temporal_o.bias",
        "unexpected keys: hookers.layers.3.other",
        "5.temporal_n.bias [7] instead of [640]",
    ):
        assert part in str(error.value)
    with pytest.raises(LayeredError, match="does not hold attention sharing.*hookers"):
        AttentionSharing.from_weights({"blocks.0.weight": torch.empty(1)}, "encoder.safetensors")


def random_unit(width=8, context=6, rank=4, frames=2, signal=0, seed=0):
    torch.manual_seed(seed)
    unit = SharingUnit(width, context, rank, frames, signal).double()
    for parameter in unit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    base = {
        p: torch.nn.Linear(context if p in "kv" else width, width, bias=p == "out").double()
        for p in ("q", "k", "v", "out")
    }
    return unit.requires_grad_(False), Base(**base, attend=plain(HEADS))


def slowly(unit, h, contexts, base, signal=None):
    """Compute section 2.7 row by row, with the low-rank changes merged into the weights."""
    frames = unit.frames
    x = h.clone()
    for r in range(len(x)):
        if signal is not None:
            convolution = unit.control_convs[r % frames]
            hidden = functional.silu(
                functional.conv2d(signal, convolution[0].weight, convolution[0].bias, padding=1)
            )
            grown = functional.conv2d(hidden, convolution[2].weight, convolution[2].bias)
            x[r] += grown[0].reshape(grown.shape[1], -1).T
    out = torch.empty_like(x)
    for r in range(len(x)):
        f = r % frames

        def linear(part, value, f=f):
            lora = getattr(unit, f"to_{part}_lora")[f]
            module = getattr(base, part)
            return functional.linear(value, module.weight + lora.up.weight @ lora.down.weight, module.bias)

        words = x[r] if contexts is None else contexts[f][r // frames]
        q, k, v = linear("q", x[r]), linear("k", words), linear("v", words)
        out[r] = x[r] + linear("out", plain(HEADS)(q[None], k[None], v[None], None)[0])
    result = out.clone()
    for scene in range(len(out) // frames):
        for position in range(out.shape[1]):
            rows = out[scene * frames : (scene + 1) * frames, position]
            normed = functional.layer_norm(
                rows, rows.shape[-1:], unit.temporal_n.weight, unit.temporal_n.bias, 1e-6
            )
            seen = unit.temporal_i(normed)[None]
            mixed = plain(HEADS)(unit.temporal_q(seen), unit.temporal_k(seen), unit.temporal_v(seen), None)
            result[scene * frames : (scene + 1) * frames, position] += unit.temporal_o(mixed)[0]
    return result - h


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("crossed", [False, True])
def test_a_unit_computes_what_its_equations_say(frames, crossed):
    unit, base = random_unit(context=6 if crossed else 8, frames=frames)
    h = torch.randn(2 * frames, 6, 8, dtype=torch.double)
    contexts = [torch.randn(2, 5, 6, dtype=torch.double) for _ in range(frames)] if crossed else None
    assert torch.allclose(unit(h, contexts, base), slowly(unit, h, contexts, base), atol=1e-10)


def test_a_control_signal_reaches_each_frame_through_its_own_convolutions():
    unit, base = random_unit(context=8, signal=5)
    h = torch.randn(4, 6, 8, dtype=torch.double)
    signal = torch.randn(1, 5, 2, 3, dtype=torch.double)
    out = unit(h, None, base, signal)
    assert torch.allclose(out, slowly(unit, h, None, base, signal), atol=1e-10)
    assert not torch.allclose(out, unit(h, None, base), atol=1e-3)


def test_at_weight_0_a_unit_is_the_base_module():
    unit, base = random_unit(context=8, signal=5)
    h = torch.randn(4, 6, 8, dtype=torch.double)
    plainly = base.out(base.attend(base.q(h), base.k(h), base.v(h)))
    assert torch.allclose(
        unit(h, None, base, torch.randn(1, 5, 2, 3, dtype=torch.double), weight=0.0), plainly, atol=1e-12
    )


def test_scenes_of_a_batch_do_not_see_each_other():
    unit, base = random_unit(context=8, frames=3)
    h = torch.randn(6, 5, 8, dtype=torch.double)
    other = h.clone()
    other[3:] = torch.randn(3, 5, 8, dtype=torch.double)
    assert torch.equal(unit(h, None, base)[:3], unit(other, None, base)[:3])


def test_frames_of_a_scene_see_each_other():
    unit, base = random_unit(context=8, frames=3)
    h = torch.randn(3, 5, 8, dtype=torch.double)
    other = h.clone()
    other[2] = torch.randn(5, 8, dtype=torch.double)
    assert (unit(h, None, base)[0] - unit(other, None, base)[0]).abs().max() > 1e-3


def test_a_frames_own_words_reach_its_conditional_rows_alone():
    context = torch.arange(8.0)[:, None, None].expand(8, 4, 3)  # two scenes of two frames, uncond before cond
    own = torch.full((1, 4, 3), 99.0)
    first, second = frame_contexts(context, 2, [None, own], [False] * 4 + [True] * 4)
    assert first[:, 0, 0].tolist() == [0, 2, 4, 6]
    assert second[:, 0, 0].tolist() == [1, 3, 99, 99]


def test_words_of_another_length_get_the_attention_that_they_would_get_alone():
    unit, base = random_unit(frames=1)
    h, context = torch.randn(2, 5, 8, dtype=torch.double), torch.randn(2, 4, 6, dtype=torch.double)
    own = torch.randn(1, 6, 6, dtype=torch.double)
    mixed = unit(h, frame_contexts(context, 1, [own], [False, True]), base)
    assert torch.allclose(mixed[:1], unit(h[:1], [context[:1]], base), atol=1e-10)
    assert torch.allclose(mixed[1:], unit(h[1:], [own], base), atol=1e-10)


def test_many_positions_go_through_in_parts_and_give_the_same(monkeypatch):
    unit, base = random_unit(context=8)
    h = torch.randn(4, 5, 8).double()
    whole, rows = unit(h, None, base), []

    def counting(q, k, v):
        rows.append(len(q))
        return base.attend(q, k, v)

    monkeypatch.setattr(attention_sharing, "_MOST_ROWS", 4)
    torch.testing.assert_close(unit(h, None, Base(base.q, base.k, base.v, base.out, counting)), whole)
    assert rows == [2, 2, 4, 4, 2]


def test_the_control_encoder_halves_the_side_six_times_in_all():
    network = AttentionSharing.from_weights(meta(KEYS["layer_sd15_fg2bg / bg2fg"]), "x")
    signals = network.encoder(torch.empty(1, 3, 512, 320, dtype=torch.float16, device="meta"))
    assert [tuple(s.shape) for s in signals] == [
        (1, 256, 64, 40),
        (1, 256, 32, 20),
        (1, 256, 16, 10),
        (1, 256, 8, 5),
    ]
    assert signal_for(signals, 16 * 10) is signals[2]
    assert signal_for([], 7) is None
    with pytest.raises(LayeredError, match=r"whole picture at once"):
        signal_for(signals, 7)


def test_the_control_encoder_is_the_published_ladder_of_convolutions():
    torch.manual_seed(0)
    encoder, picture = ControlEncoder((4, 6, 8), 10).requires_grad_(False), torch.rand(1, 3, 64, 96)
    weights, h, found = encoder.state_dict(), picture * 2 - 1, []
    for block, strides in ((0, (1, 1, 2, 1, 2, 1, 2, 1)), (1, (2, 1)), (2, (2, 1)), (3, (2, 1))):
        for number, stride in enumerate(strides):
            name = f"blocks_{block}.{2 * number}"
            h = functional.conv2d(h, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, 1)
            h = h * torch.sigmoid(h)
        found.append(h)
    for ours, theirs in zip(encoder(picture), found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_batch_that_holds_half_a_scene_is_refused():
    check_rows(6, 3)
    with pytest.raises(LayeredError, match=r"batch size is 4; allowed: a multiple of 3"):
        check_rows(4, 3)
