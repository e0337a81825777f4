"""Masked ControlNets on the storybook UNet, with random weights that change the picture."""

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, T2IAdapter, UNet2DConditionModel

from demo.world.scenes import place_object, random_scene
from demo.world.vocabulary import Thing
from layered_cli.command import main
from layered_core.control.control_map import ControlMap
from layered_core.control.hints import canny, document_hint
from layered_core.document import Control, Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_core.formats.document_json import write_document
from layered_core.formats.pictures import from_image, to_image
from layered_core.metrics.picture_metrics import edge_f1
from layered_diffusers.methods.masked_control import MaskedControl, document_control, load_controlnet
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import Run, add_residuals


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def net(pipeline):
    torch.manual_seed(0)
    model = ControlNetModel.from_unet(pipeline.model.unet)
    for block in [
        *model.controlnet_down_blocks,
        model.controlnet_mid_block,
        model.controlnet_cond_embedding.conv_out,
    ]:
        torch.nn.init.normal_(block.weight, std=0.03)
    return model.eval()


def edges(seed=0):
    return (torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(seed)) > 0.8).float()


def control(net, masks, *controls, mode="balanced"):
    return MaskedControl(
        net, edges(), ControlMap(masks, controls or (Control(hint="canny"),) * len(masks), mode)
    )


def picture(pipeline, *methods):
    return pipeline.generate(["a red ball"], seeds=[1], steps=3, methods=methods)[0]


def test_zeros_are_no_control_to_the_bit_and_ones_are_not(pipeline, net):
    plain = picture(pipeline)
    assert torch.equal(picture(pipeline, control(net, torch.zeros(1, 128, 128))), plain)
    assert not torch.allclose(picture(pipeline, control(net, torch.ones(1, 128, 128))), plain, atol=0.01)


def test_complementary_masks_are_the_plain_net_as_layers_and_as_two_methods(pipeline, net):
    mask = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(2))
    plain = picture(pipeline, control(net, torch.ones(1, 128, 128)))
    torch.testing.assert_close(
        picture(pipeline, control(net, torch.cat([mask, 1 - mask]))), plain, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        picture(pipeline, control(net, mask), control(net, 1 - mask)), plain, atol=1e-4, rtol=0
    )


def test_layers_share_one_evaluation_and_none_is_made_out_of_range(pipeline, net):
    calls = []
    hook = net.register_forward_hook(lambda *_: calls.append(1))
    picture(pipeline, control(net, torch.ones(2, 128, 128) / 2))
    assert len(calls) == 3
    picture(pipeline, control(net, torch.ones(1, 128, 128), Control(hint="canny", end=0.3)))
    hook.remove()
    assert len(calls) == 4, "only the first of three steps, at 0, 33 and 67 %, is within the first 30 %"


@pytest.mark.parametrize(
    ("skipped", "end", "acts"), [(0, 0.5, [0, 1, 2, 3, 4]), (5, 0.5, []), (5, 0.7, [0, 1]), (0, 0.0, [])]
)
def test_a_range_is_a_share_of_the_models_whole_schedule_however_late_a_run_begins(
    pipeline, net, skipped, end, acts
):
    """As in ComfyUI, where start and end are noise levels."""
    timesteps = torch.arange(950, 0, -100)[skipped:]
    latents = torch.randn(1, 4, 16, 16)
    run = Run(
        unet=pipeline.model.unet,
        scheduler=pipeline.model.scheduler,
        timesteps=timesteps,
        latents=latents,
        noise=latents,
        context=torch.randn(2, 77, 64),
        guidance=3.0,
    )
    masked = control(net, torch.ones(1, 128, 128), Control(hint="canny", end=end))
    with torch.no_grad():
        masked.start(run, None)
        assert [
            i for i in range(len(timesteps)) if masked.model_inputs(run, torch.cat([latents] * 2), i)
        ] == acts


def test_an_inpainting_net_sees_the_picture_with_a_hole_and_changes_nothing_outside(pipeline, net):
    before = to_image(torch.rand(72, 100, 3, generator=torch.Generator().manual_seed(3)))
    mask = torch.zeros(72, 100)
    mask[20:60, 30:80] = 1
    seen = []
    hook = net.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["controlnet_cond"]), with_kwargs=True
    )
    options = {"seed": 1, "steps": 3, "feather": 0}
    controlled = from_image(pipeline.add_layer(before, "a red ball", mask, control=net, **options))
    hook.remove()
    assert len(seen) == 3
    for hint in seen[0]:
        wanted = from_image(before)[..., :3].permute(2, 0, 1).masked_fill(mask == 1, -1)
        assert torch.equal(hint[:, :72, :100], wanted)
    assert torch.equal(controlled[mask == 0], from_image(before)[mask == 0])
    plain = from_image(pipeline.add_layer(before, "a red ball", mask, **options))
    assert float((controlled - plain).abs().max()) > 0.05
    silent = ControlNetModel.from_unet(pipeline.model.unet)
    assert torch.equal(
        from_image(pipeline.add_layer(before, "a red ball", mask, control=silent, **options)), plain
    )


def test_stages_take_an_inpainting_net_here_and_on_the_command_line(pipeline, net, tmp_path):
    layers = (
        Layer("sky", width=64, height=64, prompt="at night"),
        Layer("ball", x=8, y=8, width=40, height=40, prompt="a red ball"),
    )
    document = LayerDocument(64, 64, layers)
    with_net, without = (
        pipeline.generate_layers(document, steps=2, control=c, alpha="mask") for c in (net, None)
    )
    assert torch.equal(with_net.layer("sky").image, without.layer("sky").image)
    assert not torch.equal(with_net.layer("ball").image, without.layer("ball").image)
    net.save_pretrained(tmp_path / "net")
    scene = write_document(document, tmp_path / "scene")
    arguments = [
        "--alpha",
        "mask",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--inpaint-control",
        str(tmp_path / "net"),
    ]
    assert main(["stage", str(scene), "-o", str(tmp_path / "out"), *arguments]) == 0
    ball = read_layers(tmp_path / "out").document.layer("ball").image
    torch.testing.assert_close(ball, with_net.layer("ball").image, atol=0.003, rtol=0)


def test_an_adapter_cannot_inpaint(pipeline):
    adapter = T2IAdapter(in_channels=3, channels=[64, 128], num_res_blocks=1, downscale_factor=8)
    with pytest.raises(LayeredError, match="control is 'T2IAdapter'; allowed: a ControlNetModel"):
        pipeline.add_layer(
            to_image(torch.zeros(64, 64, 3)), "a red ball", torch.ones(64, 64), control=adapter
        )


def test_a_control_that_leads_acts_on_the_conditional_half_alone(pipeline, net):
    method = control(net, torch.ones(1, 128, 128), mode="control")
    seen = {}

    class Spy(MaskedControl):
        def model_inputs(self, run, model_input, index):
            seen.update(super().model_inputs(run, model_input, index))
            return seen

    picture(pipeline, Spy(method.net, method.hint, method.map))
    for residual in (*seen["down_block_additional_residuals"], seen["mid_block_additional_residual"]):
        assert not residual[:1].any()
        assert residual[1:].any()


def test_residuals_of_several_methods_add_up():
    one, two = torch.ones(1), torch.full((1,), 2.0)
    first = {"down_block_additional_residuals": (one,), "mid_block_additional_residual": two, "other": 1}
    merged = add_residuals(
        [first, {}, {"down_block_additional_residuals": (two,), "mid_block_additional_residual": two}]
    )
    assert merged["down_block_additional_residuals"][0].item() == 3
    assert merged["mid_block_additional_residual"].item() == 4
    assert merged["other"] == 1


def test_a_net_of_another_family_and_a_missing_one_are_named(pipeline, tmp_path):
    other = ControlNetModel(block_out_channels=(32, 32),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
                            cross_attention_dim=48, attention_head_dim=2, norm_num_groups=8)  # fmt: skip
    with pytest.raises(LayeredError, match=r"ControlNet's cross_attention_dim is 48; allowed: 64"):
        picture(pipeline, control(other, torch.ones(1, 128, 128)))
    with pytest.raises(LayeredError, match="cannot be loaded"):
        load_controlnet(tmp_path)


def house(hint="canny", strength=1.0):
    """Return a document with a red house at the left of a meadow, whose edges are kept, and a star that is
    free."""
    scene = random_scene(3, count=0, background="meadow")
    layers = list(scene.document().layers)
    for thing, box, control in (
        (Thing("solid", "red", "house"), (10, 50, 54, 54), Control(hint=hint, strength=strength)),
        (Thing("solid", "yellow", "star"), (76, 10, 44, 44), Control()),
    ):
        layer = replace(scene, objects=(place_object(thing, box),)).document().layers[1]
        layers.append(replace(layer, recipe=replace(layer.recipe, control=control)))
    return LayerDocument(128, 128, tuple(layers))


def agreement(picture, document):
    """Return the F1 of the picture's edges with the hint, in the half with the house."""
    wanted = document_hint(document, outline=True)[0, :, :70] > 0.5
    return edge_f1(canny(picture)[:, :70], wanted, 2)


def test_the_shipped_net_makes_a_layer_keep_its_edges(pipeline):
    document, words = house(), ["a red house and a yellow star in a meadow"] * 3
    free, held = (
        pipeline.generate(words, seeds=[1, 2, 3], methods=m)
        for m in ([], [document_control(document, outline=True)])
    )
    before, after = (sum(agreement(p, document) for p in pictures) / 3 for pictures in (free, held))
    assert after > 0.6
    assert after > 1.5 * before


def test_a_hint_keeps_its_place_in_a_picture_whose_sides_the_model_pads(pipeline, net):
    hint = edges()[:, :100, :90]
    method = MaskedControl(net, hint, ControlMap(torch.ones(1, 100, 90), (Control(hint="canny"),)))
    pipeline.generate(["a red ball"], width=90, height=100, steps=1, methods=[method])
    assert torch.equal(method.picture[0, :, :100, :90], hint)


def test_the_command_renders_a_document_under_control(tmp_path):
    write_layers(house(), tmp_path / "house")
    options = ["--steps", "2", "--strength", "1", "--seed", "1", "--device", "cpu"]
    for name, more in (("free", []), ("held", ["--control"])):
        assert (
            main(["render", str(tmp_path / "house"), "-o", str(tmp_path / f"{name}.png"), *options, *more])
            == 0
        )
    assert (tmp_path / "free.png").read_bytes() != (tmp_path / "held.png").read_bytes()
    write_layers(house("none"), tmp_path / "none")
    assert (
        main(["render", str(tmp_path / "none"), "-o", str(tmp_path / "no.png"), "--control", *options]) == 2
    )
    assert not (tmp_path / "no.png").exists()


# --- T2I-Adapter ---


@pytest.fixture(scope="module")
def adapter_run():
    """Return a run of one step on a UNet with SD1.5's blocks at small width, and an adapter that fits it."""
    torch.manual_seed(0)
    widths = [32, 64, 128, 128]
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=widths, cross_attention_dim=40, attention_head_dim=2
    ).eval()
    adapter = T2IAdapter(
        in_channels=3, channels=widths, num_res_blocks=2, downscale_factor=8, adapter_type="full_adapter"
    ).eval()
    latents = torch.randn(1, 4, 16, 16)
    run = Run(
        unet=unet,
        scheduler=DDIMScheduler(),
        timesteps=torch.tensor([500]),
        latents=latents,
        noise=latents,
        context=torch.randn(2, 7, 40),
        guidance=3.0,
    )
    return run, adapter


@torch.no_grad()
def predicted(run, *controls):
    both = torch.cat([run.latents] * 2)
    for c in controls:
        c.start(run, None)
    more = add_residuals([c.model_inputs(run, both, 0) for c in controls])
    return run.unet(both, run.timesteps[0], run.context, **more).sample


def test_a_masked_adapter_is_the_plain_one_with_ones_nothing_with_zeros_and_adds_up(adapter_run):
    run, adapter = adapter_run
    with torch.no_grad():
        features = [f.expand(2, -1, -1, -1) for f in adapter(edges()[None])]
        plain = run.unet(
            torch.cat([run.latents] * 2),
            run.timesteps[0],
            run.context,
            down_intrablock_additional_residuals=list(features),
        ).sample
    mask = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(2))
    assert torch.equal(predicted(run, control(adapter, torch.ones(1, 128, 128))), plain)
    assert torch.equal(predicted(run, control(adapter, torch.zeros(1, 128, 128))), predicted(run))
    assert not torch.allclose(plain, predicted(run), atol=1e-3)
    torch.testing.assert_close(
        predicted(run, control(adapter, mask), control(adapter, 1 - mask)), plain, atol=1e-4, rtol=0
    )


def test_an_adapter_of_another_family_is_named_and_any_is_loaded_from_its_folder(
    pipeline, adapter_run, tmp_path
):
    _, adapter = adapter_run
    adapter.save_pretrained(tmp_path)
    loaded = load_controlnet(tmp_path)
    assert torch.equal(loaded(edges()[None])[3], adapter(edges()[None])[3])
    with pytest.raises(LayeredError, match=r"ControlNet's channels is .*; allowed: .*64"):
        picture(pipeline, control(loaded, torch.ones(1, 128, 128)))
