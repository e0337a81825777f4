"""Layered rendering on diffusers UNets: the shipped model, and tiny random ones of other families."""

from dataclasses import replace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import ImageChops
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from benchmarks.bench.multidiffusion import RegionFusion, Rows
from demo.world.places import TRANSPARENT
from layered_core.attention.regional_plan import Settings
from layered_core.control.control_map import ControlMap
from layered_core.document import Control, Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError
from layered_core.painting.repaint import plan_repaint
from layered_core.rendering.rendering_plan import Rendering
from layered_diffusers.methods.layer_diffuse import LayerDiffuse
from layered_diffusers.methods.layered_rendering import LayeredRendering
from layered_diffusers.methods.masked_control import MaskedControl
from layered_diffusers.models.adapters import embedded
from layered_diffusers.models.loading import STORYBOOK
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import Method

MAIN = "a red ball and a blue star in a meadow"


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


@pytest.fixture(params=["epsilon", "v_prediction", "sample"])
def kind(request, pipeline):
    """Let the shipped UNet count as one that predicts this."""
    before = pipeline.model.scheduler
    pipeline.model.scheduler = EulerDiscreteScheduler.from_config(
        before.config, prediction_type=request.param
    )
    yield request.param
    pipeline.model.scheduler = before


def tiny(family, **unet):
    """Return a pipeline with a tiny random model that predicts noise."""
    torch.manual_seed(0)
    xl = family == "sdxl"
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
             "projection_class_embeddings_input_dim": 8 * 6 + 16}  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, projection_dim=16,
        eos_token_id=49407,
    )  # fmt: skip
    tokenizer = CLIPTokenizer.from_pretrained(STORYBOOK / "tokenizer")
    parts = {
        "unet": UNet2DConditionModel(
            block_out_channels=(32, 32), layers_per_block=1, attention_head_dim=2, sample_size=8, out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=32 if xl else 16,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **{"in_channels": 4, **unet}, **(added if xl else {}),
        ),
        "vae": AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[32] * 4, latent_channels=4,
        ),
        "scheduler": DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                   clip_sample=False, steps_offset=1),
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(text),
    }  # fmt: skip
    if xl:
        second = CLIPTextModelWithProjection(text)
        return made(StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=tokenizer))
    kind = StableDiffusionInpaintPipeline if unet else StableDiffusionPipeline
    return made(kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False))


def made(model):
    model.unet.eval()
    return LayeredDiffusionPipeline(model, side=64)


def document(side=128, **more):
    """A ball in the left half, and a star in the lower right quarter."""
    half = side // 2
    ball = Layer("ball", width=half, height=side, prompt="a red ball")
    star = Layer("star", x=half, y=half, width=half, height=half, prompt="a blue star", **more)
    return LayerDocument(side, side, (ball, star), prompt=MAIN)


def whole(side=128, prompt=MAIN):
    return LayerDocument(side, side, (Layer("all", width=side, height=side, prompt=prompt),), prompt=prompt)


def rendered(pipeline, documents=None, prompts=None, negative="", then=None, **rendering):
    return pipeline.layered_rendering(
        documents or [document()], Rendering(**rendering), prompts=prompts, negative=negative, then=then
    )


def sampled(pipeline, *methods, prompts=(MAIN,), **options):
    options = {"steps": 3, "guidance": 3.0, **options}
    return pipeline.sample_latents(list(prompts), methods=methods, **options)[0]


class Noted(Method):
    """Notes the latents after every step."""

    def start(self, run, stack):
        self.latents = []

    def after_step(self, run, index):
        self.latents.append(run.latents.clone())


# --- against runs that are known


def test_share_0_is_the_plain_run_to_the_bit(pipeline):
    how = {"negative": "dark"}
    assert torch.equal(sampled(pipeline, rendered(pipeline, share=0), **how), sampled(pipeline, **how))


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m"])
def test_with_strength_0_and_hard_masks_it_is_multidiffusion(sampler):
    pipeline = LayeredDiffusionPipeline.from_pretrained(device="cpu", sampler=sampler, dtype=torch.float64)
    masks = torch.zeros(3, 128, 128)
    masks[0], masks[1, :, :64], masks[2, 64:, 64:] = 1, 1, 1
    prompts = [MAIN, "a red ball", "a blue star"]
    rows = Rows(prompts, [5] * 3, [0] * 3, masks, [True, False, False])
    fusion = RegionFusion(rows, pipeline, hard=True, bootstrapping=0)
    theirs = sampled(pipeline, fusion, prompts=prompts, seeds=[5] * 3)
    ours = sampled(pipeline, rendered(pipeline, strength=0, share=1), seeds=[5])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert float((ours - sampled(pipeline, seeds=[5])).abs().max()) > 0.1


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("preset", ["faithful", "fast"])
@pytest.mark.parametrize("family", ["storybook", "sd15", "sdxl"])
def test_one_layer_over_all_with_the_prompts_words_is_the_plain_run(pipeline, family, preset, guidance):
    model = pipeline if family == "storybook" else tiny(family)
    how = {"guidance": guidance, "negative": "dark", "prompts": [MAIN] * 2}
    method = rendered(model, [whole(model.side)], strength=0, share=1, preset=preset, negative="dark")
    torch.testing.assert_close(sampled(model, method, **how), sampled(model, **how), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_layers_of_other_families_are_led_to_another_picture(family):
    model = tiny(family)
    led, unled = (sampled(model, rendered(model, [document(64)], strength=s)) for s in (0.2, 0))
    assert bool(torch.isfinite(led).all())
    assert float((led - unled).abs().max()) > 1e-3
    assert float((led - sampled(model)).abs().max()) > 1e-3


@pytest.mark.parametrize("preset", ["faithful", "fast"])
def test_two_pictures_of_different_documents_are_as_each_alone(pipeline, preset):
    other = replace(document(negative="a green tree"), prompt="a white house")
    documents, prompts = [document(), other], [MAIN, "a white house"]
    both = rendered(pipeline, documents, preset=preset, share=0.9)
    assert both.prompts == prompts
    together = sampled(pipeline, both, prompts=prompts, seeds=[3, 4])
    for i in range(2):
        alone = rendered(pipeline, documents[i : i + 1], preset=preset, share=0.9)
        one = sampled(pipeline, alone, prompts=prompts[i : i + 1], seeds=[3 + i])
        torch.testing.assert_close(together[i : i + 1], one, atol=1e-4, rtol=1e-4)


def test_a_layers_own_negative_acts_unless_all_share_one_pass(pipeline):
    own = [document(negative="a green tree")]
    for preset, acts in (("faithful", True), ("fast", False)):
        a, b = (sampled(pipeline, rendered(pipeline, d, preset=preset)) for d in (own, [document()]))
        assert torch.equal(a, b) != acts


def test_fast_needs_no_background_that_has_the_main_negative(pipeline):
    """Both layers have negatives of their own, and nothing else is seen."""
    halves = [Layer(n, x=64 * i, width=64, height=128, prompt=f"a {n}", negative="a tree")
              for i, n in enumerate(("ball", "star"))]  # fmt: skip
    doc = LayerDocument(128, 128, tuple(halves), prompt=MAIN, negative="dark")
    out = sampled(pipeline, rendered(pipeline, [doc], preset="fast"), negative="dark")
    assert bool(torch.isfinite(out).all())


# --- models of every kind


def ideal(pipeline, kind, spread=0.7):
    """Return the forward of a perfect UNet for latents that are N(0, spread^2)."""
    alphas = pipeline.model.scheduler.alphas_cumprod

    class Output:
        def __init__(self, sample):
            self.sample = sample

    def forward(x, t, context, **more):
        alpha = torch.sqrt(alphas[int(t)])
        sigma = torch.sqrt(1 - alpha**2)
        picture = spread**2 * alpha / (spread**2 * alpha**2 + sigma**2) * x
        noise = (x - alpha * picture) / sigma
        return Output(
            {"epsilon": noise, "v_prediction": alpha * noise - sigma * picture, "sample": picture}[kind]
        )

    return forward


@pytest.mark.parametrize("preset", ["faithful", "fast"])
def test_perfect_models_of_every_kind_are_led_to_one_picture(pipeline, preset):
    how = {"share": 1, "strength": 0.3, "colour": "constant", "constant": (1.0, 0.5, 0.0), "preset": preset}
    found, before = {}, pipeline.model.scheduler
    for kind in ("sample", "epsilon", "v_prediction"):
        pipeline.model.scheduler = EulerDiscreteScheduler.from_config(
            before.config, prediction_type=kind, timestep_type="discrete"
        )
        pipeline.model.unet.forward = ideal(pipeline, kind)
        try:
            for form in ("denoised", "paper"):
                found[kind, form] = sampled(pipeline, rendered(pipeline, form=form, **how), steps=2)
            found[kind, "plain"] = sampled(pipeline, steps=2)
        finally:
            del pipeline.model.unet.forward
            pipeline.model.scheduler = before
    for kind in ("epsilon", "v_prediction"):
        torch.testing.assert_close(found[kind, "denoised"], found["sample", "denoised"], atol=2e-4, rtol=1e-4)
        assert float((found[kind, "paper"] - found[kind, "denoised"]).abs().max()) > 0.02
    assert float((found["sample", "denoised"] - found["sample", "plain"]).abs().max()) > 0.05
    # Of a predicted picture nothing is taken out.
    torch.testing.assert_close(found["sample", "paper"], found["sample", "denoised"])


@pytest.mark.parametrize("colour", ["words", "noise"])
def test_the_colour_of_words_has_one_sign_in_models_of_every_kind(pipeline, kind, colour):
    """A picture that words make brighter in one channel is planted in that channel, whatever is predicted."""
    method = rendered(pipeline, share=1, strength=0.3, colour=colour)
    own, planted = pipeline.model.unet.forward, []

    class Output:
        def __init__(self, sample):
            self.sample = sample

    def forward(x, t, context, **more):
        brighter = (context - empty).abs().amax((1, 2)) > 1e-4
        picture = torch.zeros_like(x)
        picture[:, 1] = brighter[:, None, None].float()
        planted.append(x)
        return Output(picture if kind == "sample" else -picture)

    empty = pipeline._words([""], "", 128, 128)[0][:1]
    pipeline.model.unet.forward = forward
    try:
        sampled(pipeline, method, steps=1)
    finally:
        del pipeline.model.unet.forward
    assert pipeline.model.unet.forward == own
    if colour == "words":
        wanted = torch.zeros(16, 16)
        wanted[:, :8], wanted[:, 8:] = 0.6, -0.6  # 0.3 times a unit vector of one channel among four
        torch.testing.assert_close(method.rows.planted[1, 1], wanted)
        assert not bool(method.rows.planted[1, [0, 2, 3]].any())
    shifts = planted[2] - planted[2][:1]  # the background has no shift
    torch.testing.assert_close(shifts, method.rows.planted, atol=1e-5, rtol=0)


# --- beside other methods


def test_regions_that_follow_act_after_the_share_alone(pipeline):
    settings = Settings(guidance=3.0, growth=0.03)
    regions = pipeline.regional_prompts([document()], settings)
    alone, followed, regional = Noted(), Noted(), Noted()
    sampled(pipeline, rendered(pipeline, share=0.5), alone, steps=4)
    sampled(pipeline, rendered(pipeline, share=0.5, then=regions), followed, steps=4)
    sampled(pipeline, regions, regional, steps=4)
    same = [torch.equal(a, b) for a, b in zip(alone.latents, followed.latents, strict=True)]
    assert same == [True, True, False, False]
    assert not torch.equal(regional.latents[0], followed.latents[0])
    assert {type(p) for p in pipeline.model.unet.attn_processors.values()} == {AttnProcessor2_0}


def test_the_method_that_follows_gives_the_prompts(pipeline):
    regions = pipeline.regional_prompts(
        [replace(document(), prompt="a meadow")], Settings(mode="collage", append=True)
    )
    assert rendered(pipeline, then=regions).prompts == regions.prompts
    assert "a red ball" in regions.prompts[0]


@pytest.mark.parametrize("preset", ["faithful", "fast"])
def test_a_controlnet_beside_it_acts_on_the_rows_of_its_own_pictures(pipeline, preset):
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(pipeline.model.unet)
    for block in [
        *net.controlnet_down_blocks,
        net.controlnet_mid_block,
        net.controlnet_cond_embedding.conv_out,
    ]:
        torch.nn.init.normal_(block.weight, std=0.03)
    hint = (torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    control = MaskedControl(net.eval(), hint, ControlMap(torch.ones(1, 128, 128), (Control(hint="canny"),)))
    how = {"prompts": [MAIN, "a white house"], "negative": "dark"}
    documents = [whole(), whole(prompt="a white house")]
    method = rendered(pipeline, documents, strength=0, share=1, negative="dark", preset=preset)
    wanted = sampled(pipeline, control, **how)
    torch.testing.assert_close(sampled(pipeline, control, method, **how), wanted, atol=2e-5, rtol=1e-5)
    assert float((wanted - sampled(pipeline, **how)).abs().max()) > 0.05


@pytest.mark.parametrize("preset", ["faithful", "fast"])
def test_an_inpainting_unet_gets_its_further_channels_in_every_row(preset):
    model = tiny("sd15", in_channels=9)
    before = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(64, 64)
    mask[16:48, 16:48] = 1
    plan = model.stage_plan(before, mask, feather=0)
    how = {"steps": 3, "negative": "dark"}
    method = rendered(model, [whole(64)], strength=0, share=1, negative="dark", preset=preset)
    plain = model.repaint(plan, MAIN, **how)
    torch.testing.assert_close(model.repaint(plan, MAIN, methods=[method], **how), plain, atol=1e-5, rtol=0)
    two = model.repaint(plan, MAIN, methods=[rendered(model, [document(64)], preset=preset)], **how)
    assert torch.equal(two[:, mask == 0], before[:, mask == 0])
    assert float((two - plain).abs().max()) > 1e-3


def test_places_are_cut_as_a_repainted_part_is(pipeline):
    """The plan cuts out pixels 32..96, 48..112 and scales them by 2: the halves meet in its cell 4."""
    seen = []

    class Seen(LayeredRendering):
        def start(self, run, stack):
            super().start(run, stack)
            seen.append(self.rows.masks)

    pair = [Layer(n, x=64 * i, width=64, height=160, prompt=f"a {n}") for i, n in enumerate(("ball", "star"))]
    method = Seen(pipeline.model, pipeline.encode, [LayerDocument(160, 160, tuple(pair))], Rendering())
    mask = torch.zeros(160, 160)
    mask[48:112, 32:96] = 1
    plan = plan_repaint(torch.full((3, 160, 160), 0.4), mask, soften=0, side=128, context=0)
    pipeline.repaint(plan, MAIN, steps=2, methods=[method])
    columns = seen[0][:, 8].round()
    assert columns.tolist() == [[1.0] * 8 + [0.0] * 8, [0.0] * 8 + [1.0] * 8]


def test_an_embedding_of_a_layer_acts_as_the_words_whose_vectors_it_holds(pipeline, tmp_path):
    table = pipeline.model.text_encoder.get_input_embeddings().weight
    red = pipeline.model.tokenizer("red", add_special_tokens=False).input_ids
    save_file({"emb_params": table[red].detach().clone()}, tmp_path / "colour.safetensors")
    ball = Layer("ball", width=64, height=128, prompt="ball", recipe=Recipe(embedding="colour"))
    named = LayerDocument(128, 128, (ball,), prompt="a meadow")
    written = replace(named, layers=(replace(ball, prompt="red ball", recipe=Recipe()),))
    how = {"strength": 1.0, "attention": None, "rendering": Rendering(share=1), "steps": 2, "seed": 1}
    a = pipeline.render(named, adapters=tmp_path, **how)
    assert ImageChops.difference(a, pipeline.render(written, **how)).getextrema() < ((3, 3),) * 3
    with pytest.raises(LayeredError, match="layer 'ball': its embedding 'colour' is not loaded"):
        rendered(pipeline, [named])
    rendered(pipeline, [named], share=0)
    with embedded(pipeline.model, [named], tmp_path):
        assert rendered(pipeline, [named]).renderings[0].layers[0].words == "<colour> ball"


# --- the model afterwards, and memory


def test_when_memory_ends_rows_go_in_parts_to_the_same_picture(pipeline):
    """Two pictures of three parts are six rows; the UNet takes three."""
    documents, how = [document(), document(negative="a tree")], {"prompts": [MAIN] * 2, "steps": 2}
    wanted = sampled(pipeline, rendered(pipeline, documents, share=1), **how)
    unet, sizes = pipeline.model.unet, []
    own = type(unet).forward

    def small(x, *given, **named):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError
        return own(unet, x, *given, **named)

    unet.forward = small
    try:
        out = sampled(pipeline, rendered(pipeline, documents, share=1), **how)
    finally:
        del unet.forward
    torch.testing.assert_close(out, wanted, atol=2e-5, rtol=1e-5)
    assert sizes == [6, 3, 3, 2, 3, 3, 3, 3, 3, 3, 3, 3]


def test_one_row_that_does_not_fit_ends_the_run(pipeline):
    def none(*given, **named):
        raise torch.OutOfMemoryError

    pipeline.model.unet.forward = none
    try:
        with pytest.raises(torch.OutOfMemoryError):
            sampled(pipeline, rendered(pipeline))
    finally:
        del pipeline.model.unet.forward


def test_the_model_is_as_before_also_after_an_error_in_a_pass(pipeline):
    unet = pipeline.model.unet
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    own, calls = type(unet).forward, []

    def broken(*given, **named):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("broken on purpose")
        return own(unet, *given, **named)

    plain = sampled(pipeline)
    regions = pipeline.regional_prompts([document()])
    unet.forward = broken
    try:
        with pytest.raises(RuntimeError, match="broken on purpose"):
            sampled(pipeline, rendered(pipeline, share=0.9, then=regions))
    finally:
        del unet.forward
    assert {type(p) for p in unet.attn_processors.values()} == {AttnProcessor2_0}
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())
    sampled(pipeline, rendered(pipeline, share=0.5, then=regions))
    assert torch.equal(sampled(pipeline), plain)


# --- documents


def test_a_document_is_rendered_and_harmonized_with_it(pipeline):
    doc, led = document(), Rendering(share=0.5)
    plain = pipeline.render(doc, steps=3)
    assert pipeline.render(doc, steps=3, rendering=Rendering(share=0)).tobytes() == plain.tobytes()
    with_regions, alone = (
        pipeline.render(doc, steps=3, rendering=led, **x) for x in ({}, {"attention": None})
    )
    assert len({x.tobytes() for x in (plain, with_regions, alone)}) == 3
    kept = replace(doc.layers[0], image=torch.full((128, 64, 4), 1.0), recipe=Recipe(noise=0))
    doc = replace(doc, layers=(kept, doc.layers[1]))
    made = pipeline.harmonize(doc, steps=3, rendering=led)
    assert made.tobytes() != pipeline.harmonize(doc, steps=3).tobytes()
    assert made.crop((0, 0, 64, 128)).getextrema() == ((255, 255),) * 3


def test_layers_that_are_too_small_for_a_cell_are_told(pipeline, caplog):
    dot = Layer(
        "dot", torch.zeros(1, 1, 4).index_fill(2, torch.tensor([3]), 1e-5), x=20, y=20, prompt="a dot"
    )
    doc = document()
    sampled(pipeline, rendered(pipeline, [replace(doc, layers=(*doc.layers, dot))]), steps=1)
    assert "layers 'dot' are too small to be seen in any of the picture's 16 x 16 cells" in caplog.text


def test_negatives_without_guidance_are_told(pipeline, caplog):
    sampled(pipeline, rendered(pipeline, [document(negative="a tree")]), guidance=1.0, steps=1)
    assert "Classifier-free guidance is off, so negative prompts have no effect" in caplog.text


# --- refusals


def test_two_methods_that_predict_are_refused_by_name(pipeline):
    with pytest.raises(
        LayeredError, match="methods is 'LayeredRendering and LayeredRendering'; allowed: one method"
    ):
        sampled(pipeline, rendered(pipeline), rendered(pipeline))


def test_methods_that_make_pictures_together_are_refused_by_name(pipeline):
    frames = LayerDiffuse(
        pipeline.model, TRANSPARENT / "joint.safetensors", "foreground, background and blend"
    )
    with pytest.raises(
        LayeredError, match="methods is 'LayeredRendering and LayerDiffuse'; .* Leave out LayerDif"
    ):
        sampled(pipeline, frames, rendered(pipeline), prompts=[MAIN] * 3)


def test_regions_beside_it_are_refused_with_the_way_to_let_them_follow(pipeline):
    with pytest.raises(
        LayeredError, match="methods is 'RegionalPrompts and LayeredRendering'; .* its 'then'"
    ):
        sampled(pipeline, pipeline.regional_prompts([document()]), rendered(pipeline))


def test_documents_must_be_one_or_one_a_picture(pipeline):
    with pytest.raises(
        LayeredError, match="documents is 2; allowed: one, or one for each picture, that is 3"
    ):
        sampled(pipeline, rendered(pipeline, [document()] * 2), prompts=[MAIN] * 3)
