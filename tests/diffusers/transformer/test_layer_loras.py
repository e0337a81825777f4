"""LoRAs of layers on transformers: tiny random weights of every family, through the pipelines' own calls."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from tiny_transformers import TINY
from torch import nn

from layered_core.attention.regional_plan import Settings
from layered_core.document import Layer, LayerDocument, Lora, Recipe
from layered_core.errors import LayeredError
from layered_core.rendering.rendering_plan import Rendering
from layered_diffusers.pipeline import TransformerPipeline
from layered_diffusers.sampling import Method

MAIN = "a red ball and a blue star in the meadow"
SIZE = {"width": 96, "height": 64}
RANK = 2


def made(family, **more):
    model = TINY[family](**more)
    model.set_progress_bar_config(disable=True)
    return TransformerPipeline(model, side=96)


@pytest.fixture(scope="module", params=list(TINY))
def pipeline(request):
    return made(request.param)


def parts(*loras, right=()):
    """Two layers beside each other; the right third of the canvas shows none."""
    ball = Layer("ball", torch.ones(64, 32, 4), prompt="a red ball", recipe=Recipe(loras=loras, outside=0))
    star = Layer(
        "star",
        torch.ones(32, 32, 4),
        x=32,
        prompt="a blue star",
        recipe=Recipe(loras=tuple(right), outside=0),
    )
    return LayerDocument(96, 64, (ball, star), prompt=MAIN)


def whole(*loras):
    layer = Layer("all", torch.ones(64, 96, 4), prompt=MAIN, recipe=Recipe(loras=loras))
    return LayerDocument(96, 64, (layer,), prompt=MAIN)


def matrices(transformer, names, seed=0):
    """Return random low-rank pairs by the names of the modules: (down, up)."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name in names:
        weight = transformer.get_submodule(name).weight
        scale = (0.3 * float(weight.detach().std()) / RANK**0.5) ** 0.5
        down = scale * torch.randn(RANK, *weight.shape[1:], generator=generator)
        found[name] = (
            down,
            scale * torch.randn(weight.shape[0], RANK, *[1] * (weight.ndim - 2), generator=generator),
        )
    return found


def all_modules(transformer):
    """Return the names of every linear layer and convolution."""
    return [n for n, m in transformer.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def save(folder, pairs, name="look"):
    save_file(
        {
            f"transformer.{n}.lora_{s}.weight": x
            for n, pair in pairs.items()
            for s, x in zip("AB", pair, strict=True)
        },
        folder / f"{name}.safetensors",
    )
    return folder


def sampled(pipeline, documents, folder=None, steps=2, methods=(), seeds=(0,), guidance=3.0, **settings):
    documents = documents if isinstance(documents, list) else [documents]
    method = pipeline.regional_prompts(documents, Settings(**settings), adapters=folder)
    prompts = [*method.prompts] * (len(seeds) // len(method.prompts))
    options = {"steps": steps, "guidance": guidance, "seeds": list(seeds), **SIZE}
    return pipeline.sample_latents(prompts, methods=[method, *methods], **options)[0]


def merged(pipeline, pairs, scale):
    """Return a pipeline whose transformer's own weights have the LoRA added."""
    other = copy.copy(pipeline)
    other.model = copy.copy(pipeline.model)
    transformer = copy.deepcopy(pipeline.model.transformer)
    with torch.no_grad():
        for name, (down, up) in pairs.items():
            weight = transformer.get_submodule(name).weight
            weight += scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    other.model.register_modules(transformer=transformer)
    return other


def test_a_layer_that_covers_all_gets_its_lora_as_if_every_weight_had_it(pipeline, tmp_path):
    transformer = pipeline.model.transformer
    pairs = matrices(transformer, all_modules(transformer))
    ours = sampled(pipeline, whole(Lora("look", 0.7)), save(tmp_path, pairs))
    assert float((ours - sampled(pipeline, whole())).abs().max()) > 1e-2
    torch.testing.assert_close(ours, sampled(merged(pipeline, pairs, 0.7), whole()), atol=1e-4, rtol=0)


def test_strength_zero_and_hidden_layers_change_no_bit(pipeline, tmp_path):
    transformer = pipeline.model.transformer
    folder = save(tmp_path, matrices(transformer, all_modules(transformer)))
    plain = sampled(pipeline, parts())
    assert torch.equal(sampled(pipeline, parts(Lora("look", 0.0)), folder), plain)
    assert torch.equal(
        sampled(pipeline, parts(Lora("look")), folder, strength=0.0), sampled(pipeline, parts(), strength=0.0)
    )


def test_the_transformer_is_as_before_also_after_an_error_in_step_three(pipeline, tmp_path):
    class Broken(Method):
        on_transformers = True

        def after_step(self, run, index):
            if index == 2:
                raise RuntimeError("broken on purpose")

    transformer = pipeline.model.transformer
    folder = save(tmp_path, matrices(transformer, all_modules(transformer)))
    before = sampled(pipeline, parts())
    with pytest.raises(RuntimeError, match="broken on purpose"):
        sampled(pipeline, parts(Lora("look")), folder, steps=4, methods=[Broken()])
    assert not [n for n, m in transformer.named_modules() if "forward" in vars(m)]
    assert torch.equal(sampled(pipeline, parts()), before)


PICTURE = {
    "flux": "transformer_blocks.0.ff.net.2", "sd3": "transformer_blocks.0.ff.net.2",
    "qwen": "transformer_blocks.0.img_mlp.net.2", "zimage": "layers.0.feed_forward.w2",
}  # fmt: skip
"""A module of each family, after the only attention, that gets the picture."""
WORDS = {
    "flux": "transformer_blocks.0.attn.add_v_proj", "sd3": "transformer_blocks.0.attn.add_v_proj",
    "qwen": "transformer_blocks.0.attn.add_v_proj", "zimage": "cap_embedder.1",
}  # fmt: skip
"""A module of each family that gets the words."""


@pytest.mark.parametrize("module", [PICTURE, WORDS])
@pytest.mark.parametrize("family", list(TINY))
def test_in_one_block_a_lora_changes_only_the_pixels_of_its_layer(family, module, tmp_path):
    pipeline = made(family, layers=1)
    folder = save(tmp_path, matrices(pipeline.model.transformer, [module[family]]))
    how = {"steps": 1, "guidance": 1.0, "emphasis": 0.0}
    change = sampled(pipeline, parts(right=[Lora("look")]), folder, **how) - sampled(pipeline, parts(), **how)
    seen = change.abs().amax((0, 1))
    inside = torch.zeros(8, 12, dtype=torch.bool)
    inside[:4, 4:8] = True
    assert float(seen[inside].min()) > 1e-5
    assert float(seen[~inside].max()) < 1e-6


def test_pictures_of_a_batch_have_loras_of_their_own(pipeline, tmp_path):
    transformer = pipeline.model.transformer
    folder = save(tmp_path, matrices(transformer, all_modules(transformer)))
    save(tmp_path, matrices(transformer, all_modules(transformer), seed=1), "other")
    documents = [parts(Lora("look")), parts(right=[Lora("other")])]
    together = sampled(pipeline, documents, folder, seeds=(3, 4))
    for i, document in enumerate(documents):
        alone = sampled(pipeline, document, folder, seeds=(3 + i,))
        torch.testing.assert_close(alone[0], together[i], atol=2e-4, rtol=0)


def test_in_layered_rendering_a_layers_loras_act_on_all_of_its_own_pass(pipeline, tmp_path):
    def rendered(pipeline, *loras, folder=None):
        recipe = Recipe(loras=loras)
        back = Layer("back", torch.ones(64, 96, 4), prompt="in the meadow", recipe=recipe)
        ball = Layer("ball", torch.ones(64, 32, 4), prompt="a red ball", recipe=recipe)
        document = LayerDocument(96, 64, (back, ball), prompt=MAIN)
        method = pipeline.layered_rendering([document], Rendering(share=1.0, strength=0.0), adapters=folder)
        return pipeline.sample_latents(method.prompts, seeds=[0], steps=2, methods=[method], **SIZE)[0]

    transformer = pipeline.model.transformer
    pairs = matrices(transformer, all_modules(transformer))
    ours = rendered(pipeline, Lora("look", 0.7), folder=save(tmp_path, pairs))
    right = rendered(merged(pipeline, pairs, 0.7))
    torch.testing.assert_close(ours, right, atol=1e-4, rtol=0)
    assert float((right - rendered(pipeline)).abs().max()) > 1e-2


def test_a_lora_of_another_family_is_named_before_anything_is_sampled(pipeline, tmp_path):
    key = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {f"{key}.lora_down.weight": torch.zeros(2, 4), f"{key}.lora_up.weight": torch.zeros(4, 2)}
    save_file(tensors, tmp_path / "unet.safetensors")
    with pytest.raises(LayeredError, match=r"layer 'ball': LoRA 'unet.safetensors' does not fit "):
        pipeline.regional_prompts([parts(Lora("unet"))], adapters=tmp_path)


def test_kohyas_flux_files_and_their_text_encoders_half_are_read(tmp_path):
    """Kohya's files join a block's projections to queries, keys and values; diffusers keeps them apart."""
    pipeline = made("flux")
    width = pipeline.model.transformer.inner_dim
    generator = torch.Generator().manual_seed(0)
    down, up = (
        torch.randn(RANK, width, generator=generator),
        torch.randn(3 * width, RANK, generator=generator),
    )
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{key}.lora_down.weight": down,
        f"{key}.lora_up.weight": up,
        f"{key}.alpha": torch.tensor(1.0),
    }
    clip = pipeline.model.text_encoder
    name = "encoder.layers.1.self_attn.v_proj"
    spoken = matrices(getattr(clip, "text_model", clip), [name])[name]
    key = f"lora_te1_text_model_{name.replace('.', '_')}"
    tensors |= {f"{key}.lora_down.weight": spoken[0], f"{key}.lora_up.weight": spoken[1]}
    save_file(tensors, tmp_path / "look.safetensors")
    method = pipeline.regional_prompts([parts(Lora("look"))], adapters=tmp_path)
    file = method.loras._files["look"]
    query = file["transformer"]["transformer_blocks.0.attn.to_q"]
    torch.testing.assert_close(query.scale * query.up @ query.down, (up[:width] @ down) / RANK)
    plain = pipeline.model.encode_prompt("a red ball", None)[1]
    with method.loras.encoding(0, "ball"):
        changed = pipeline.model.encode_prompt("a red ball", None)[1]
    assert not torch.equal(changed, plain)
    assert torch.equal(pipeline.model.encode_prompt("a red ball", None)[1], plain)
    assert not torch.equal(sampled(pipeline, parts(Lora("look")), tmp_path), sampled(pipeline, parts()))
