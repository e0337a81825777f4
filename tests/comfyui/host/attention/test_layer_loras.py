"""LoRAs of layers act in their layers, and nowhere else."""

import comfy.hooks
import comfy.sd
import comfy.utils
import lora_scene as scene
import pytest
import tiny
import torch
from comfy_extras.nodes_hypertile import HyperTile
from graph import node, regenerate
from lora_scene import KINDS, layer, path_of, stack_of, unet_shapes, with_own, write_lora
from regional_scene import apply, encode, in_tiles, predicted
from sampling import LOADER, explode, sample

import nodes as comfy_nodes

PLAIN = {"prompt": "a meadow at noon", "negative": "dark"}


@pytest.fixture(scope="module")
def sd15(loaded, tmp_path_factory):
    """A tiny model shaped as SD1.5, with single precision, and the storybook's CLIP."""
    return tiny.build("sd15", tmp_path_factory.mktemp("sd15")), loaded[1]


def seen_by(regions, model, clip, *layers, **values):
    """Return the predictions, cond and uncond, of a stack of layers."""
    return predicted(*apply(regions, model, clip, stack_of(regions, *layers), **{**PLAIN, **values}))[1:]


def close(got, want, atol=1e-5):
    return all(
        float((g - w).abs().max()) <= atol * float(w.abs().max()) for g, w in zip(got, want, strict=True)
    )


def core(kind, model, clip, name, strength):
    """Return model and clip with a LoRA for the whole picture, as ComfyUI's bypass loader gives them; of the kinds
    that it does not compute, or changes weights for, as the loader that changes weights does."""
    file = comfy.utils.load_torch_file(str(path_of(name)))
    load = comfy.sd.load_bypass_lora_for_models
    if kind in ("glora", "oft", "boft", "diff"):
        load = comfy.sd.load_lora_for_models
    return load(model, clip, file, strength, strength)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_over_everything_is_cores_lora_for_the_whole_picture(kind, regions, sd15):
    model, clip = sd15
    shapes = {**unet_shapes(model), **scene.text_shapes(clip)}
    strength = 0.7
    if kind == "diff":  # the loader rounds the text encoder's weights
        shapes = unet_shapes(model)
    if kind in ("oft", "boft"):  # which turn the output, and its bias too
        shapes = unet_shapes(model, lambda name: name.endswith(("to_q", "to_k", "to_v")))
        strength = 1.0
    name = write_lora(f"whole_{kind}", shapes, kind, std=0.3)
    whole = layer(regions, "all")
    mine = seen_by(regions, model, clip, with_own(regions, whole, (name, strength)))
    want = seen_by(regions, *core(kind, model, clip, name, strength), whole)
    assert close(mine, want, 1e-4)
    assert not close(want, seen_by(regions, model, clip, whole), 0.01)


@pytest.fixture(scope="module")
def files(sd15):
    """Three LoRAs for everything in the model and its text encoder, and one for the text encoder alone."""
    model, clip = sd15
    texts = scene.text_shapes(clip)
    everything = {**unet_shapes(model), **texts}
    names = [write_lora(f"style_{i}", everything, seed=i, std=0.5) for i in range(3)]
    return [*names, write_lora("of_text", texts, seed=5, std=0.5)]


def halves(regions, left=(), right=(), **more):
    return (
        layer(regions, "left", *left, width=64, prompt="a red ball", **more),
        layer(regions, "right", *right, x=64, width=64, prompt="a blue star", **more),
    )


def test_what_does_not_act_changes_no_bit(regions, sd15, files):
    plain = seen_by(regions, *sd15, *halves(regions))
    neutral = [
        halves(regions, [(files[0], 0.0)]),
        (*halves(regions), layer(regions, "hidden", files[0], visible=False)),
        (layer(regions, "covered", files[0], prompt="a dark sky"), *halves(regions)),
        (*halves(regions), layer(regions, "outside", files[0], x=500)),
    ]
    for layers in neutral:
        assert all(torch.equal(a, b) for a, b in zip(seen_by(regions, *sd15, *layers), plain, strict=True))
    loras = halves(regions, [files[0]], [files[1]])
    for values in ({"strength": 0.0}, {"start": 1.0, "end": 1.0}):
        seen = [seen_by(regions, *sd15, *x, **values) for x in (loras, halves(regions))]
        assert values.get("start") or all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_neutral_loras_are_not_even_read(regions, sd15):
    layers = (*halves(regions, [("nowhere", 0.0)]), layer(regions, "hidden", "nowhere", visible=False))
    assert len(seen_by(regions, *sd15, *layers)) == 2


def test_a_lora_changes_its_layers_pixels_and_no_others(regions, sd15, files):
    model, clip = sd15
    spread = write_lora("last", unet_shapes(model, lambda name: name == "out.2"), "lora")
    plain, left = (seen_by(regions, model, clip, *halves(regions, own))[0] for own in ((), [spread]))
    changed = (left - plain).abs().amax((0, 1, 2))
    assert float(changed[:8].min()) > 0
    assert float(changed[8:].max()) == 0


def test_words_of_other_layers_and_the_main_prompt_are_encoded_as_without(regions, sd15, files):
    model, clip = sd15
    without, with_it = (
        apply(regions, model, clip, stack_of(regions, *halves(regions, own, negative="blurred")), **PLAIN)
        for own in ((), [files[3]])
    )
    for half in (1, 2):
        (plain, before), (own, after) = without[half][0], with_it[half][0]
        before, after = (x["layered_diffusion_attention"].contexts for x in (before, after))
        assert torch.equal(plain, own)
        assert not torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])


def test_two_loras_of_one_layer_add_up(regions, sd15):
    model, clip = sd15
    last = unet_shapes(model, lambda name: name == "out.2")
    one, two = (write_lora(f"last_{i}", last, seed=i) for i in range(2))
    plain, first, second, both = (
        seen_by(regions, model, clip, *halves(regions, own))
        for own in ((), [one], [(two, -0.6)], [one, (two, -0.6)])
    )
    for p, a, b, c in zip(plain, first, second, both, strict=True):
        torch.testing.assert_close(c - p, (a - p) + (b - p), atol=1e-5, rtol=1e-4)
    twice = seen_by(regions, model, clip, *halves(regions, [one, one]))
    torch.testing.assert_close(twice[0] - plain[0], 2 * (first[0] - plain[0]), atol=1e-5, rtol=1e-4)


def test_one_lora_on_all_layers_of_the_picture_is_that_lora_but_for_what_has_no_place(regions, sd15):
    model, clip = sd15
    placed = unet_shapes(model, lambda name: "attn1" in name or "in_layers" in name or "ff" in name)
    name = write_lora("placed", placed, std=0.5)
    both = seen_by(regions, model, clip, *halves(regions, [name], [name]))
    core_model, core_clip = core("lora", model, clip, name, 1.0)
    assert close(both, seen_by(regions, core_model, core_clip, *halves(regions)), 1e-4)


def test_a_lora_for_the_whole_picture_beside_it_is_unchanged(regions, sd15, files):
    model, clip = sd15
    for load in (comfy.sd.load_bypass_lora_for_models, comfy.sd.load_lora_for_models):
        file = comfy.utils.load_torch_file(str(path_of(files[1])))
        changed = load(model, clip, file, 0.8, 0.8)
        idle = seen_by(regions, *changed, *halves(regions, [(files[0], 0.0)]))
        assert close(idle, seen_by(regions, *changed, *halves(regions)), 0)
        # Each adds what it adds, whichever was first: the last convolution is linear in both.
        last = write_lora("last", unet_shapes(model, lambda name: name == "out.2"), seed=8)
        alone, beside = (
            seen_by(regions, *which, *halves(regions, [last]))[0] for which in ((model, clip), changed)
        )
        assert not torch.equal(alone, beside)
        plain = seen_by(regions, *changed, *halves(regions))[0]
        assert float((beside - plain)[..., 8:].abs().max()) == 0
        assert float((beside - plain)[..., :8].abs().min()) > 0


def test_after_an_error_in_the_third_step_the_model_is_as_before(regions, sd15, files):
    model, clip = sd15
    before, modules = sampled_plain(model, clip), [*model.model.modules(), *clip.cond_stage_model.modules()]
    forwards = [vars(module).get("forward") for module in modules]
    out = apply(regions, model, clip, stack_of(regions, *halves(regions, [files[0]], [files[1]])), **PLAIN)
    steps = []

    def third(arguments):
        steps.append(1)
        return arguments["denoised"] if len(steps) < 3 else explode(arguments)

    with pytest.raises(RuntimeError, match="broken on purpose"):
        sample(*out, callback=third)
    assert len(steps) == 3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert [vars(module).get("forward") for module in modules] == forwards
    assert torch.equal(sampled_plain(model, clip), before)


def sampled_plain(model, clip):
    return sample(model, encode(clip, "a meadow"), encode(clip, ""))


def test_loras_come_along_with_the_conditionings_and_act_once(regions, sd15, files):
    model, clip = sd15
    out = apply(regions, model, clip, stack_of(regions, *halves(regions, [files[0]], [files[1]])), **PLAIN)
    own, alone = sample(*out), sample(model, *out[1:])
    assert torch.equal(own, alone)
    plain = apply(regions, model, clip, stack_of(regions, *halves(regions)), **PLAIN)
    assert not torch.equal(own, sample(*plain))


def test_pictures_of_a_batch_and_both_halves_of_guidance_get_the_same_loras(regions, sd15, files):
    out = apply(regions, *sd15, stack_of(regions, *halves(regions, [files[0]], [files[1]])), **PLAIN)
    together = predicted(*out, batch=2)
    alone = predicted(*out)
    assert torch.equal(together[0][0], alone[0][0])
    assert close([x[0] for x in together[1:]], [x[0] for x in alone[1:]], 1e-4)
    plain = predicted(*apply(regions, *sd15, stack_of(regions, *halves(regions)), **PLAIN), batch=2)
    assert not close([x[1] for x in together[1:]], [x[1] for x in plain[1:]], 0.01)


def test_tiles_of_the_picture_get_the_loras_of_their_places(regions, sd15):
    model, clip = sd15
    last = write_lora("last", unet_shapes(model, lambda name: name == "out.2"))
    out = apply(regions, model, clip, stack_of(regions, *halves(regions, [last])), **PLAIN)
    plain = apply(regions, model, clip, stack_of(regions, *halves(regions)), **PLAIN)
    for together in (False, True):
        got, want = (predicted(in_tiles(x[0], [(0, 8), (8, 16)], together), *x[1:])[1] for x in (out, plain))
        changed = (got - want).abs().amax((0, 1, 2))
        assert float(changed[:8].min()) > 0
        assert float(changed[8:].max()) == 0


def test_twenty_loras_act(regions, sd15):
    shapes = unet_shapes(sd15[0], lambda name: "attn2" in name)
    names = [write_lora(f"many_{i}", shapes, seed=i) for i in range(20)]
    plain = seen_by(regions, *sd15, *halves(regions))
    assert not close(seen_by(regions, *sd15, *halves(regions, names[:10], names[10:])), plain, 0.01)


def test_layers_without_words_get_their_loras(regions, sd15, files):
    silent = [layer(regions, "silent", *own, width=64, prompt="") for own in ((), [files[0]])]
    plain, own = (seen_by(regions, *sd15, x) for x in silent)
    assert not close(own, plain, 0.01)


def bad_error(regions, sd15, *loras):
    with pytest.raises(regions.error) as found:
        seen_by(regions, *sd15, *halves(regions, loras))
    return str(found.value)


def test_bad_loras_are_named_before_sampling(regions, sd15, loaded, tmp_path):
    model, clip = sd15
    text = bad_error(regions, sd15, "nowhere")
    assert text.startswith("layer 'left': LoRA is 'nowhere'; allowed: ")
    assert text.endswith("Copy it into ComfyUI's models/loras folder")
    scene.write_file("no_lora", {"encoder.weight": torch.zeros(2, 2)})
    assert bad_error(regions, sd15, "no_lora").startswith(
        "layer 'left': LoRA 'no_lora.safetensors' is no LoRA: it holds encoder.weight"
    )
    path_of("broken").write_bytes(b"no tensors at all")
    scene.write_file("of_flux", {f"transformer.x_embedder.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"})
    assert "'broken.safetensors' cannot be read" in bad_error(regions, sd15, "broken")
    assert (
        "of its 2 tensors, such as transformer.x_embedder.lora_A.weight, none fits this model"
        in bad_error(regions, sd15, "of_flux")
    )
    other = write_lora(
        "other_width", {k: (s[0], s[1] + 1) for k, s in unet_shapes(model).items() if len(s) == 2}
    )
    text = bad_error(regions, sd15, other)
    assert "layer 'left': LoRA 'other_width.safetensors' does not fit diffusion_model." in text
    assert text.endswith("take a LoRA that was trained for SD15")
    made = scene.tensors_of("lora", (4, 32, 3, 3), torch.Generator())
    file = {f"diffusion_model.out.2.{k}": v for k, v in made.items()}
    scene.write_file("dora", {**file, "diffusion_model.out.2.dora_scale": torch.ones(4, 1, 1, 1)})
    assert "is a LoRA of the kind DoRA, which cannot act in one layer alone" in bad_error(
        regions, sd15, "dora"
    )


def test_loras_act_on_a_model_shaped_as_sdxl(regions, loaded, tmp_path):
    model, clip = tiny.build("sdxl", tmp_path), loaded[1]
    name = write_lora("whole_sdxl", {**unet_shapes(model), **scene.text_shapes(clip)}, std=0.3)
    last = write_lora("last_sdxl", unet_shapes(model, lambda name: name == "out.2"))

    def seen(model, clip, *layers):
        model, *words = apply(regions, model, clip, stack_of(regions, *layers), **PLAIN)
        for options in (options for entries in words for _, options in entries):
            options["pooled_output"] = torch.zeros(1, 1280)
        return predicted(model, *words)[1:]

    whole = layer(regions, "all")
    wanted = seen(*core("lora", model, clip, name, 0.7), whole)
    assert close(seen(model, clip, with_own(regions, whole, (name, 0.7))), wanted, 1e-4)
    got, plain = (seen(model, clip, *halves(regions, own))[0] for own in ([last], []))
    changed = (got - plain).abs().amax((0, 1, 2))
    assert float(changed[:8].min()) > 0
    assert float(changed[8:].max()) == 0


def test_loras_follow_a_cut_out(host, regions, loaded):
    picture = node("EmptyImage", width=160, height=160, batch_size=1, color=0x406080)
    given = regenerate("a", "", size=128, grow=0, feather=0)["inputs"]
    del given["layers"]
    prompt = {
        **LOADER,
        "picture": picture,
        "none": node("SolidMask", value=0.0, width=160, height=160),
        "box": node("SolidMask", value=1.0, width=32, height=32),
        "mask": node(
            "MaskComposite", destination=["none", 0], source=["box", 0], x=48, y=64, operation="add"
        ),
        "it": node("LD_RegenerateLayers", **given, image=["picture", 0], mask=["mask", 0]),
    }
    model, latent = host.value(prompt, "it", 0), host.value(prompt, "it", 1)
    last = write_lora("last_story", unet_shapes(model, lambda name: name == "out.2"))
    results = []
    for own in ([last], []):
        # Pixels 32 to 96 are sampled in 16 columns; the layer covers the first 8 of them.
        ball = layer(regions, "ball", *own, width=64)
        stack = stack_of(regions, ball, layer(regions, "rest", x=64, width=96), side=160)
        out = apply(regions, model, loaded[1], stack, **PLAIN)
        with torch.inference_mode():
            made = comfy_nodes.common_ksampler(out[0], 1, 1, 3.0, "euler", "normal", *out[1:], latent)
        results.append(made[0]["samples"])
    changed = (results[0] - results[1]).abs().amax((0, 1, 2))
    assert float(changed[5:8].min()) > 0
    assert float(changed[9:].max()) == 0  # the mask is scaled, so that its edge is soft


def test_the_models_half_acts_on_its_layers_own_words_alone(regions, sd15):
    """A LoRA of the keys and values of words changes nothing if its layer has no words."""
    model, clip = sd15
    words = write_lora(
        "of_words", unet_shapes(model, lambda name: "attn2.to_k" in name or "attn2.to_v" in name)
    )
    other = halves(regions)[1]
    for prompt, changes in (("a red ball", True), ("", False)):
        plain, own = (
            seen_by(regions, model, clip, layer(regions, "left", *x, width=64, prompt=prompt), other)
            for x in ([], [words])
        )
        assert torch.equal(plain[0], own[0]) is not changes
    both = seen_by(regions, model, clip, *halves(regions, [words], [words]))
    left = seen_by(regions, model, clip, *halves(regions, [words]))
    assert not torch.equal(both[0], left[0])


def test_patches_of_the_context_by_other_packs_keep_the_loras(regions, sd15, files):
    model, clip = sd15
    patched = model.clone()
    patched.set_model_attn2_patch(lambda n, context, value, extra: (n, context, value))
    stack = halves(regions, [files[0]], [files[1]])
    assert close(seen_by(regions, patched, clip, *stack), seen_by(regions, model, clip, *stack), 1e-4)


def test_cores_lora_hooks_act_beside_the_loras_of_layers(regions, sd15, files):
    """ComfyUI changes weights for its hooks; what layers add comes on top of whatever a module then gives."""
    model, clip = sd15
    last = unet_shapes(model, lambda name: name == "out.2")
    mine, theirs = write_lora("last_mine", last, seed=3), write_lora("last_theirs", last, seed=4)
    hooks = comfy.hooks.create_hook_lora(comfy.utils.load_torch_file(str(path_of(theirs))), 1.0, 1.0)

    def seen(own, hooked):
        patched, *words = apply(regions, model, clip, stack_of(regions, *halves(regions, own)), **PLAIN)
        if hooked:
            words = [comfy.hooks.set_hooks_for_conditioning(w, hooks) for w in words]
        return predicted(patched, *words)[1]

    plain, with_mine, with_theirs, both = (seen(*x) for x in (([], 0), ([mine], 0), ([], 1), ([mine], 1)))
    assert not torch.equal(with_theirs, plain)
    torch.testing.assert_close(
        both - plain, (with_mine - plain) + (with_theirs - plain), atol=1e-4, rtol=1e-3
    )


def test_where_the_picture_is_divided_inside_the_model_only_a_layer_over_everything_has_its_lora(
    regions, sd15
):
    """HyperTile puts tiles of the picture into the batch of an attention."""
    model, clip = sd15
    blocks = (
        "input_blocks.1.",
        "input_blocks.2.",
        "output_blocks.9.",
        "output_blocks.10.",
        "output_blocks.11.",
    )
    ends = "attn1.to_q", "attn1.to_out.0"  # keys and values are those of the whole picture
    divided = unet_shapes(model, lambda name: name.startswith(blocks) and name.endswith(ends))
    inside, nothing = write_lora("inside", divided), write_lora("nothing", divided, std=0.0)
    tiled = HyperTile.execute(model, tile_size=64, swap_size=1, max_depth=0, scale_depth=False)[0]
    plain, half, whole = (
        seen_by(regions, tiled, clip, *layers)
        for layers in (halves(regions, [nothing]), halves(regions, [inside]), [layer(regions, "all", inside)])
    )
    assert all(torch.equal(a, b) for a, b in zip(half, plain, strict=True))
    wanted = seen_by(regions, *core("lora", tiled, clip, inside, 1.0), layer(regions, "all"))
    assert close(whole, wanted, 1e-4)
