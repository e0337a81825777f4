"""What Masked Model Patch refuses or tells of, and cut-outs."""

import pytest
import torch
from patch_scene import (
    anima,
    diffsynth,
    layers_of,
    left_half,
    lllite,
    mask_of,
    picture,
    qwen,
)

import nodes as comfy_nodes

# --- refused ---


def test_models_that_do_not_belong_together_are_refused(host, pack, weigh):
    error = pack("layered_core.errors").LayeredError
    scene, other = qwen(), qwen()
    with pytest.raises(error, match="model: number of patches that base lacks is 0; allowed: 1 or more"):
        weigh(scene.model, scene.model)
    with pytest.raises(error, match="base: is another model. Connect to base"):
        weigh(diffsynth(scene), other.model)
    with pytest.raises(error, match=r"base: has patches that model lacks \(DiffSynthCnetPatch\)"):
        weigh(scene.model, diffsynth(scene))
    with pytest.raises(error, match=r"end_percent is 0.2; allowed: a number 0.5..1"):
        weigh(diffsynth(scene), scene.model, start_percent=0.5, end_percent=0.2)
    with pytest.raises(error, match="no visible layer has a control hint"):
        weigh(diffsynth(scene), scene.model, layers=layers_of(pack, scene, ("none",)))
    layers = layers_of(pack, scene, ("canny",))
    with pytest.raises(error, match="mask: size is '96x96'; allowed: the aspect ratio of the layers, 96x64"):
        weigh(diffsynth(scene), scene.model, layers=layers, mask=torch.ones(1, 96, 96))


def test_patches_of_other_places_are_refused_by_name(host, pack, weigh):
    class Style:
        def __call__(self, arguments):
            return arguments

    scene = qwen()
    for place, patch in (
        ("post_input", Style()), ("attn1_patch", Style()), ("middle_block_after_patch", Style()),
        ("forward_timestep_embed_patch", (torch.nn.Module, Style())),
    ):  # fmt: skip
        model = scene.model.clone()
        model.set_model_patch(patch, place)
        with pytest.raises(
            pack("layered_core.errors").LayeredError,
            match=rf"model: place of the patch .*Style is '{place}'; allowed: double_block, noise_refiner",
        ):
            weigh(model, scene.model)


@pytest.mark.parametrize("part", ["txt", "img"])
def test_a_patch_of_words_or_of_the_number_of_tokens_is_refused(host, pack, weigh, part):
    class Doubled:
        def __call__(self, arguments):
            return {**arguments, part: arguments[part].repeat(1, 2, 1)}

    scene = qwen()
    model = scene.model.clone()
    model.set_model_double_block_patch(Doubled())
    masked = weigh(model, scene.model, mask=left_half(scene))
    with pytest.raises(
        pack("layered_core.errors").LayeredError, match=r"the patch .*Doubled changes the words'"
    ):
        scene.sampled(masked)


@pytest.mark.parametrize(("make", "control"), [(qwen, diffsynth), (anima, lllite)])
def test_a_part_of_the_picture_that_is_sampled_alone_is_refused(host, pack, weigh, make, control):
    """As conditioning areas and nodes that sample tile by tile do."""
    scene = make()
    model = control(scene)
    masked = weigh(model, scene.model, mask=left_half(scene))
    area = comfy_nodes.ConditioningSetArea().append(scene.positive, 48, 64, 0, 0, 1.0)[0]
    with pytest.raises(
        pack("layered_core.errors").LayeredError,
        match="size of the part that is sampled, in latent cells is '6x8'; allowed: 12x8, the whole latent",
    ):
        scene.sampled(masked, positive=area)
    ones = weigh(model, scene.model, mask=mask_of(scene))
    assert torch.equal(scene.sampled(ones, positive=area), scene.sampled(model, positive=area))


def test_an_evaluation_outside_of_sampling_is_refused(host, pack, weigh):
    scene = qwen()
    masked = weigh(diffsynth(scene), scene.model, mask=left_half(scene))
    options = {**masked.model_options["transformer_options"], "sigmas": torch.ones(1)}
    with (
        torch.inference_mode(),
        pytest.raises(pack("layered_core.errors").LayeredError, match="OUTER_SAMPLE"),
    ):
        masked.model.apply_model(
            scene.latents, torch.ones(1), c_crossattn=scene.positive[0][0], transformer_options=options
        )


# --- a part that Regenerate Layers cuts out ---


SIDE = 160
"""Side of the whole picture, pixels."""


@pytest.fixture
def cut(pack, host):
    """A cut-out of the picture: pixels 32..96, 48..112, scaled by 2."""
    repaint, cut_out = pack("layered_core.painting.repaint"), pack("nodes.noise.cut_out")
    region = torch.zeros(SIDE, SIDE)
    region[64:96, 48:80] = 1
    plan = repaint.plan_repaint(picture((SIDE, SIDE))[0].movedim(-1, 0), region, soften=0, side=128)
    assert (plan.crop.left, plan.crop.top, plan.crop.right, plan.crop.bottom) == (32, 48, 96, 112)
    latents = torch.rand(1, 16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return cut_out.CutOut(plan, latents)


def test_masks_of_the_whole_picture_follow_a_cut_out(host, pack, weigh, cut, caplog):
    scene = qwen()
    scene.latents = cut.latents
    model = diffsynth(scene)  # its picture is of the cut-out
    whole = torch.zeros(1, SIDE, SIDE)
    whole[:, :, 64:] = 1
    by_hand = cut.plan.cut_layout(whole)
    assert by_hand.shape == (1, 128, 128)

    def sampled(mask, cut):
        masked = weigh(model, scene.model, mask=mask)
        pack("nodes.noise.cut_out").with_cut_out(masked, cut)
        return scene.sampled(masked)

    wanted = sampled(by_hand, None)
    assert torch.equal(sampled(whole, cut), wanted)
    assert torch.equal(sampled(by_hand, cut), wanted), "a mask of the cut-out's size was cut"
    assert not torch.equal(sampled(whole, None), wanted)
    own = cut.plan.cut_mask()[None]
    assert torch.equal(sampled(own, cut), sampled(own, None))
    assert "hint" not in caplog.text


def test_layers_follow_a_cut_out(host, pack, weigh, cut):
    scene = qwen()
    scene.latents = cut.latents
    model = diffsynth(scene)
    document = pack("layered_core.document")
    recipe = document.Recipe(control=document.Control("canny"))
    layer = document.Layer("ball", x=64, width=96, height=SIDE, prompt="a ball", recipe=recipe)
    layers = pack("nodes.layers.socket").write_stack(document.LayerDocument(SIDE, SIDE, (layer,)))
    masked = weigh(model, scene.model, layers=layers)
    pack("nodes.noise.cut_out").with_cut_out(masked, cut)
    whole = torch.zeros(1, SIDE, SIDE)
    whole[:, :, 64:] = 1
    by_hand = cut.plan.cut_layout(whole)
    assert torch.equal(scene.sampled(masked), scene.sampled(weigh(model, scene.model, mask=by_hand)))


def test_the_log_tells_of_a_control_picture_that_does_not_follow_a_cut_out(host, pack, weigh, cut, caplog):
    scene = qwen((1, 16, 1, SIDE // 8, SIDE // 8))
    model = weigh(diffsynth(scene), scene.model, mask=left_half(scene))
    pack("nodes.noise.cut_out").with_cut_out(model, cut)
    scene.latents = cut.latents
    scene.sampled(model, steps=1)
    assert "hint of 160x160 has the size of the whole picture" in caplog.text
