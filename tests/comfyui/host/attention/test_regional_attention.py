"""Regional Prompt Attention in the real host: its effect, with every implementation of attention and any
prompt, and its errors."""

from pathlib import Path

import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import folder_paths
import pytest
import safetensors.torch
import torch
from graph import from_image, node, regional
from regional_scene import MODES, WIDGETS, apply, encode, halves, left_and_right, predicted
from sampling import LOADER, models, sample

# --- what it does ---


@pytest.mark.parametrize("mode", MODES)
def test_strength_zero_is_the_plain_prompt_to_the_bit(regions, loaded, mode):
    model, clip = loaded
    out, positive, negative = apply(
        regions, model, clip, mode=mode, strength=0.0, negative="dark", auto_negative=True
    )
    plain = predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, "dark"))
    for a, b in zip(predicted(out, positive, negative), plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["collage", "paint with words"])
@pytest.mark.parametrize("append", [False, True])
def test_so_it_is_with_words_that_the_prompt_lacks(regions, loaded, mode, append):
    model, clip = loaded
    out, positive, negative = apply(
        regions, model, clip, mode=mode, strength=0.0, append=append, prompt="a quiet meadow"
    )
    for a, b in zip(
        predicted(out, positive, negative),
        predicted(model, encode(clip, "a quiet meadow"), encode(clip, "")),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_no_layers_are_the_plain_prompt_to_the_bit(regions, loaded):
    model, clip = loaded
    nothing = {"version": 1, "layers": [], "canvas": (128, 128)}
    out, positive, negative = apply(regions, model, clip, nothing)
    for a, b in zip(
        predicted(out, positive, negative),
        predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, "")),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_words_act_on_their_side_in_the_conditional_half_alone(regions, loaded, mode):
    model, clip = loaded
    _, cond, uncond = predicted(*apply(regions, model, clip, mode=mode))
    _, plain, plain_uncond = predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, ""))
    assert torch.equal(uncond, plain_uncond)
    assert float((cond - plain).abs().max()) > 1e-3
    if mode in ("regions", "joint"):
        pair = (
            apply(regions, model, clip, halves(regions, right=x), mode=mode, prompt="in a meadow")
            for x in ("a blue star", "a yellow house")
        )
        cond, other = (predicted(*x, sigma=1.0)[1] for x in pair)
        left, right = left_and_right(other - cond)
        assert right > 2 * left


def test_a_negative_of_a_layer_acts_in_the_unconditional_half_on_its_side_alone(regions, loaded):
    model, clip = loaded
    pair = [
        regions.document.Layer(x, x=64 * i, y=0, width=64, height=128, negative=n)
        for i, (x, n) in enumerate((("l", ""), ("r", "a yellow house")))
    ]
    stack = regions.layers.write_stack(regions.document.LayerDocument(128, 128, tuple(pair)))
    _, cond, uncond = predicted(*apply(regions, model, clip, stack), sigma=1.0)
    _, plain, plain_uncond = predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, ""), sigma=1.0)
    assert torch.equal(cond, plain)
    left, right = left_and_right(uncond - plain_uncond)
    assert right > 2 * left


def test_start_and_end_bound_the_noise_at_which_it_acts(regions, loaded):
    model, clip = loaded
    patched = apply(regions, model, clip, start=0.2, end=0.6)
    sampling = model.get_model_object("model_sampling")
    for share, acts in ((0.1, False), (0.3, True), (0.5, True), (0.7, False)):
        sigma = sampling.percent_to_sigma(share)
        plain = predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, ""), sigma)[1]
        assert torch.equal(predicted(*patched, sigma)[1], plain) != acts


def everywhere(regions, loaded, words, prompt="in a meadow", **how):
    """What is predicted where both halves of the canvas have the same words, which get all of the attention:
    as with those words for a prompt."""
    model, clip = loaded
    stack = halves(regions, words, words)
    settings = {"prompt": prompt, "global_weight": 0.0, "emphasis": 0.0}
    return predicted(*apply(regions, model, clip, stack, **settings), **how)[1]


@pytest.mark.parametrize("size", [(16, 24), (20, 12), (9, 17)])
def test_at_any_latent_size_layers_that_share_the_canvas_cover_it_and_act_on_their_side(
    regions, loaded, size
):
    model, clip = loaded
    plain = predicted(model, encode(clip, "a red ball"), encode(clip, ""), size=size)[1]
    whole = everywhere(regions, loaded, "a red ball", size=size)
    torch.testing.assert_close(whole, plain, atol=1e-4, rtol=1e-3)
    cond, other = (
        predicted(
            *apply(regions, model, clip, halves(regions, right=x), prompt="in a meadow"), sigma=1.0, size=size
        )[1]
        for x in ("a blue star", "a yellow house")
    )
    change, third = (other - cond).abs(), size[1] // 3
    assert float(change[..., -third:].mean()) > 1.5 * float(change[..., :third].mean())


def test_nothing_of_a_run_is_left_on_the_model(regions, loaded):
    out, positive, negative = apply(regions, *loaded)
    before = repr(sorted(out.model_options["transformer_options"]))
    predicted(out, positive, negative)
    assert repr(sorted(out.model_options["transformer_options"])) == before
    assert "patches_replace" not in out.model_options["transformer_options"]


# --- every way attention is computed ---

BACKENDS = {
    "sub_quad": host_attention.attention_sub_quad,
    "split": host_attention.attention_split,
    "pytorch": host_attention.attention_pytorch,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_attention_backend_gives_the_same(regions, loaded, monkeypatch, mode, backend):
    patched = apply(regions, *loaded, mode=mode, auto_negative=True)
    monkeypatch.setattr(host_attention, "optimized_attention", host_attention.attention_basic)
    monkeypatch.setattr(host_attention, "optimized_attention_masked", host_attention.attention_basic)
    basic = predicted(*patched)
    monkeypatch.setattr(host_attention, "optimized_attention", BACKENDS[backend])
    monkeypatch.setattr(host_attention, "optimized_attention_masked", BACKENDS[backend])
    for a, b in zip(predicted(*patched), basic, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_near(regions, pack, loaded, monkeypatch, kind):
    monkeypatch.setattr(comfy.model_management, "unet_dtype", lambda **_: kind)
    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *_: None)
    demo = pack("nodes.demo.demo_model")
    half = demo.load_unet(str(demo.MODEL))
    assert half.model.get_dtype() == kind
    _, clip = loaded
    exact = predicted(*apply(regions, *loaded))[1]
    rough = predicted(*apply(regions, half, clip))[1]
    assert float((rough - exact).norm() / exact.norm()) < 0.05


# --- prompts ---


def test_a_batch_is_its_pictures(regions, loaded):
    patched = apply(regions, *loaded, auto_negative=True)
    together, alone = predicted(*patched, batch=2), predicted(*patched)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[:1], b, atol=1e-4, rtol=1e-3)
    assert not torch.equal(together[1][0], together[1][1])


@pytest.mark.parametrize(("main", "layer", "negative"), [(2, 1, 1), (1, 3, 2), (5, 1, 1), (3, 28, 2)])
def test_prompts_of_different_lengths_act_together(regions, loaded, main, layer, negative):
    model, clip = loaded
    filler = " ".join(["thing"] * 75)
    words = f"{WIDGETS['prompt']} " + " ".join([filler] * (main - 1))
    stack = halves(regions, right="a blue star " + " ".join([filler] * (layer - 1)))
    out = apply(
        regions, model, clip, stack, prompt=words, negative=" ".join(["dark"] + [filler] * (negative - 1))
    )
    assert out[1][0][0].shape[1] == 77 * main
    # Repeating the tokens of one half to the length of the other leaves the other half's result alone.
    torch.testing.assert_close(
        predicted(*out)[1], predicted(out[0], out[1], encode(clip, "dark"))[1], atol=1e-4, rtol=1e-3
    )
    long = "a blue star " + " ".join([filler] * (layer - 1))
    torch.testing.assert_close(
        everywhere(regions, loaded, long, words),
        predicted(model, encode(clip, long), encode(clip, ""))[1],
        atol=1e-4,
        rtol=1e-3,
    )


@pytest.mark.parametrize(
    "prompt",
    ["((a red ball", "a red ball))) :1.3", "(a red ball:nan) \\(", "", "ball " * 2000, "a red ball" + "\0"],
)
def test_an_odd_prompt_of_layers_is_what_it_is_as_the_prompt_of_the_picture(regions, loaded, prompt):
    model, clip = loaded
    plain = predicted(model, encode(clip, prompt), encode(clip, ""))[1]
    assert bool(plain.isfinite().all()) != ("nan" in prompt), "the host itself makes no number of that weight"
    for main in (prompt, "in a meadow") if prompt else ("",):
        whole = everywhere(regions, loaded, prompt, main)
        torch.testing.assert_close(whole, plain, atol=1e-4, rtol=1e-3, equal_nan=True)


def test_weights_in_parentheses_do_not_hide_the_words(regions, loaded):
    model, clip = loaded
    out = apply(
        regions, model, clip, prompt="(a red ball:1.3) and a [blue] star, a blue star", mode="collage"
    )
    words = [r.words for r in out[1][0][1][regions.patch.KEY].regions]
    assert words[0] == (1, 2, 3)
    assert len(words[1]) == 3


def test_an_embedding_in_a_layers_prompt_is_read(regions, loaded):
    model, clip = loaded
    folder = Path(folder_paths.get_folder_paths("embeddings")[0])
    folder.mkdir(parents=True, exist_ok=True)
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    ids = [t for t, *_ in clip.tokenize("red ball")["l"][0][1:3]]
    safetensors.torch.save_file({"emb_params": table[ids].detach().clone()}, folder / "redball.safetensors")
    named, written = (
        apply(regions, model, clip, halves(regions, left=x), prompt="in a meadow")
        for x in ("a embedding:redball", "a red ball")
    )
    torch.testing.assert_close(predicted(*named)[1], predicted(*written)[1])
    recipe = regions.document.Recipe(embedding="redball")
    layer = regions.document.Layer("x", width=64, height=128, prompt="star", recipe=recipe)
    stack = regions.layers.write_stack(regions.document.LayerDocument(128, 128, (layer,)))
    region = apply(regions, model, clip, stack, prompt="an embedding:redball star", mode="collage")[1][0][1][
        regions.patch.KEY
    ].regions[0]
    assert region.words == (2, 3, 4)


# --- bad input ---


def test_half_a_letter_in_words_is_named(regions, loaded):
    for words, prompt in (("a red \ud800", "in a meadow"), ("a red ball", "in a \ud800 meadow")):
        with pytest.raises(ValueError, match=r"is .*allowed: whole letters\. Letter \d+ is half of one"):
            apply(regions, *loaded, halves(regions, left=words), prompt=prompt)


def test_defaults_of_these_tests_are_those_of_the_node(regions):
    schema = regions.node.GET_SCHEMA()
    assert {i.id: i.default for i in schema.inputs if i.id in WIDGETS} == {**WIDGETS, "prompt": ""}


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"strength": float("nan")}, ["strength", "nan", "0..1"]), ({"strength": -1.0}, ["strength"]),
        ({"start": 0.7, "end": 0.2}, ["end", "0.2", "0.7..1"]),
        ({"mode": "magic"}, ["mode"]),
        ({"mode": "collage", "prompt": "a meadow"}, ["layer 'ball'", "a red ball", "not found", "append"]),
        ({"mode": "collage", "prompt": "a red ball, a red ball"},
        ["layer 'ball'", "found 2 times", "longer"]),
    ],
)  # fmt: skip
def test_bad_values_are_named_before_sampling(host, values, parts):
    ball = from_image(width=64, height=128, prompt="a red ball", name="ball")
    prompt = {**LOADER, "a": ball, "it": regional("a", **values), "out": node("PreviewAny", source=["it", 1])}
    told = host.error_of(prompt)
    for part in parts:
        assert part in told, told


def one_layer(regions, **fields):
    layer = regions.document.Layer("x", prompt="a blue star", **fields)
    return regions.layers.write_stack(regions.document.LayerDocument(128, 128, (layer,)))


@pytest.mark.parametrize("mask", ["zero", "one", "pixel", "tiny", "huge"])
def test_a_mask_of_any_size_acts_as_the_box_that_it_fills(regions, loaded, mask):
    model, clip = loaded
    made = {
        "zero": torch.zeros(64, 64),
        "one": torch.ones(64, 64),
        "pixel": torch.zeros(128, 64),
        "tiny": torch.ones(1, 1),
        "huge": torch.ones(700, 300),
    }[mask]
    box = {"width": 64, "height": 128}
    if mask == "pixel":
        made[5, 4] = 1
        box = {"x": 4, "y": 5, "width": 1, "height": 1}
    cond = predicted(*apply(regions, model, clip, one_layer(regions, mask=made, width=64, height=128)))[1]
    plain = predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, ""))[1]
    assert torch.equal(cond, plain) == (mask == "zero")
    if mask != "zero":
        wanted = predicted(*apply(regions, model, clip, one_layer(regions, **box)))[1]
        torch.testing.assert_close(cond, wanted, atol=1e-4, rtol=1e-3)


def test_fifty_layers_act_as_the_one_that_they_make_together(regions, loaded):
    model, clip = loaded
    layers = tuple(
        regions.document.Layer(
            f"{i}", x=i % 10 * 12, y=i // 10 * 25, width=12, height=25, prompt="a blue star"
        )
        for i in range(50)
    )
    stack = regions.layers.write_stack(regions.document.LayerDocument(128, 128, layers))
    fifty, one = (
        predicted(*apply(regions, model, clip, x, prompt="in a meadow", emphasis=0.0))[1]
        for x in (stack, one_layer(regions, width=120, height=125))
    )
    torch.testing.assert_close(fifty, one, atol=1e-4, rtol=1e-3)
    assert (
        float((one - predicted(model, encode(clip, "in a meadow"), encode(clip, ""))[1]).abs().max()) > 1e-3
    )


def test_sampling_with_the_original_is_untouched_by_broken_and_interrupted_regional_runs(regions, host):
    host.fresh()
    model, positive, negative = models(host)
    clip = host.value(LOADER, "loader", 1)
    before = sample(model, positive, negative)
    out = apply(regions, model, clip, guidance=4.0)

    def broken(arguments):
        raise RuntimeError("broken on purpose")

    def interrupt(arguments):
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    sample(*out)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        sample(*out, broken)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(*out, interrupt)
    assert torch.equal(sample(model, positive, negative), before)
