"""No node changes the MODEL, CLIP or VAE that it gets: sampling with the original afterwards gives the same
bits."""

import comfy.model_management
import pytest
import tiny
import torch
from decompose_scene import from_pictures, scene
from graph import (
    KEPT,
    MODELS,
    add_layer,
    fill_behind,
    from_boxes,
    from_image,
    from_layout,
    from_masks,
    generate_layers,
    layer_diffuse,
    load,
    masked_patch,
    node,
    per_layer_sdedit,
    regenerate,
    regional,
    rendering,
    transparent_decode,
    transparent_encode,
)
from learning_scene import learn, one_ball, train_lora, training_data
from PIL import Image
from sampling import LOADER, explode, models, of_ours, sample

import nodes as comfy_nodes

EXAMPLES = {
    "LD_LoadDemoModel": {},
    "LD_LoadDemoControlNet": {"it": node("LD_LoadDemoControlNet")},
    "LD_LoadLayer": {"it": load("red.png")},
    "LD_LayerFromImage": {"it": from_image(width=8, height=8)},
    "LD_LayerComposite": {
        "a": load("red.png"),
        "it": node("LD_LayerComposite", layers=["a", 0], backdrop="transparent"),
    },
    "LD_StorybookPicture": {
        "it": node("LD_StorybookPicture", what="star", colour="blue", material="glass", size=64, seed=0)
    },
    "LD_StorybookMasks": {
        "p": node("EmptyImage", width=32, height=32, batch_size=1, color=0x80FF40),
        "it": node("LD_StorybookMasks", image=["p", 0], grow=1),
    },
    "LD_ArrangeLayers": {
        "a": load("red.png"),
        "it": node(
            "LD_ArrangeLayers", layers=["a", 0], arrangement={"version": 1, "layers": {"red": {"x": 4}}}
        ),
    },
    "LD_LayerBoard": {
        "a": load("red.png"),
        "it": node("LD_LayerBoard", layers=["a", 0], board={"version": 1, "marked": ["red"]}),
    },
    "LD_EditLayer": {
        "a": load("red.png"),
        "it": node("LD_EditLayer", layers=["a", 0], layer="red", **{**KEPT, "visible": "off"}),
    },
    "LD_SelectLayers": {"a": load("red.png"), "it": node("LD_SelectLayers", layers=["a", 0], which="red")},
    "LD_SplitLayer": {"a": load("red.png"), "it": node("LD_SplitLayer", layers=["a", 0], layer="red")},
    "LD_JoinLayer": {
        "a": load("red.png"),
        "p": node("LD_SplitLayer", layers=["a", 0], layer="red"),
        "it": node("LD_JoinLayer", layers=["a", 0], layer="red", image=["p", 0]),
    },
    "LD_LoadLayers": {"it": node("LD_LoadLayers", file="storybook.psd [example]", memory_limit=1)},
    "LD_SaveLayers": {
        "a": load("red.png"),
        "it": node("LD_SaveLayers", layers=["a", 0], filename_prefix="leak", format="ora", bits="8"),
    },
    "LD_LayoutFromLayers": {
        "a": load("red.png"),
        "it": node(
            "LD_LayoutFromLayers", layers=["a", 0], without_words="name", background="element", colours=5
        ),
    },
    "LD_LayersFromBoxes": {
        "a": from_image(width=8, height=8, prompt="a red ball"),
        "l": node(
            "LD_LayoutFromLayers", layers=["a", 0], without_words="name", background="element", colours=5
        ),
        "it": from_boxes("l"),
    },
    "LD_LayersFromLayout": {"it": from_layout('[{"bbox": [0, 0, 500, 500], "desc": "a red ball"}]')},
    "LD_LayersFromMasks": {
        "p": node("EmptyImage", width=32, height=32, batch_size=1, color=0x80FF40),
        "m": node("SolidMask", value=1.0, width=32, height=32),
        "it": from_masks(["p", 0], ["m", 0]),
    },
    "LD_LayersFromPictures": {
        "a": load("red.png"),
        "p": node("LD_SplitLayer", layers=["a", 0], layer="red"),
        "i": node("InvertMask", mask=["p", 1]),
        "j": node("JoinImageWithAlpha", image=["p", 0], alpha=["i", 0]),
        "it": from_pictures(["j", 0]),
    },
    "LD_LayoutMetrics": {
        "a": from_image(width=8, height=8, canvas_width=32, canvas_height=32),
        "p": node("EmptyImage", width=32, height=32, batch_size=1, color=255),
        "it": node("LD_LayoutMetrics", layers=["a", 0], image=["p", 0], names=""),
    },
    "LD_LayerPreview": {"a": load("red.png"), "it": node("LD_LayerPreview", layers=["a", 0], size=64)},
    "LD_LayerControlHint": {
        "a": from_image(width=8, height=8, control_hint="segmentation"),
        "it": node("LD_LayerControlHint", layers=["a", 0], outline=False),
    },
    "LD_MaskedControlNetApply": {
        "a": from_image(
            width=64, height=64, control_hint="segmentation", canvas_width=128, canvas_height=128
        ),
        "w": node("CLIPTextEncode", text="a red ball", clip=["loader", 1]),
        "net": node("TestControlNet"),
        "it": node(
            "LD_MaskedControlNetApply",
            positive=["w", 0],
            negative=["w", 0],
            control_net=["net", 0],
            layers=["a", 0],
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
            mode="balanced",
        ),
    },
    "LD_MaskedModelPatch": {
        "a": from_image(width=64, height=64, control_hint="canny", canvas_width=128, canvas_height=128),
        "patched": node("TestPatchedModel", model=["loader", 0]),
        "it": masked_patch(layers=["a", 0]),
    },
    "LD_PerLayerSDEdit": {"a": load("red.png"), "it": per_layer_sdedit("a")},
    "LD_RegenerateLayers": {"a": load("red.png"), "it": regenerate("a", "red")},
    "LD_RegionalPromptAttention": {
        "a": from_image(width=64, height=128, prompt="a red ball"),
        "it": regional("a", guidance=4.0),
    },
    "LD_LayeredRendering": {
        "a": from_image(width=64, height=128, prompt="a red ball"),
        "it": rendering("a"),
    },
    "LD_AttentionPreview": {
        "a": from_image(width=64, height=128, prompt="a red ball"),
        "r": regional("a", record=True),
        "l": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "s": node(
            "KSampler",
            model=["r", 0],
            positive=["r", 1],
            negative=["r", 2],
            latent_image=["l", 0],
            seed=0,
            steps=1,
            cfg=3.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "d": node("VAEDecode", samples=["s", 0], vae=["loader", 2]),
        "it": node("LD_AttentionPreview", positive=["r", 1], image=["d", 0], size=64),
    },
    "LD_VisionGuidancePreview": {
        "a": from_image(width=64, height=128, prompt="a red ball"),
        "r": rendering("a"),
        "l": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "s": node(
            "KSampler",
            model=["r", 0],
            positive=["r", 1],
            negative=["r", 2],
            latent_image=["l", 0],
            seed=0,
            steps=1,
            cfg=3.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "it": node(
            "LD_VisionGuidancePreview",
            model=["loader", 0],
            vae=["loader", 2],
            positive=["r", 1],
            samples=["s", 0],
        ),
    },
    "LD_LayerMaskFromAttention": {
        "a": from_image(width=128, height=128, prompt="a red ball"),
        "it": node(
            "LD_LayerMaskFromAttention",
            model=["loader", 0],
            clip=["loader", 1],
            layers=["a", 0],
            prompt="a red ball in a meadow",
            negative="",
            seed=0,
            steps=1,
            cfg=3.0,
            threshold=0.5,
            largest=True,
        ),
    },
    "LD_PasteBack": {
        "a": load("red.png"),
        "r": regenerate("a", "red"),
        "it": node("LD_PasteBack", image=["r", 3], paste=["r", 2], blend="gradient", match_colours=True),
    },
    "LD_StageLayer": {
        "a": load("red.png"),
        "r": regenerate("a", "red"),
        "it": node(
            "LD_StageLayer",
            image=["r", 3],
            paste=["r", 2],
            name="red",
            prompt="",
            negative="",
            alpha="mask",
            layers=["a", 0],
        ),
    },
    "LD_AddLayerByPrompt": {"it": add_layer("a red ball", width=32, height=32, steps=1)},
    "LD_DecomposePicture": scene(),
    "LD_FillBehindLayers": {
        "p": node("EmptyImage", width=64, height=64, batch_size=1, color=0x80FF40),
        "m": node("SolidMask", value=1.0, width=64, height=64),
        "l": from_masks(["p", 0], ["m", 0]),
        "it": fill_behind(["l", 0], steps=1, **MODELS),
    },
    "LD_StageSeed": {"it": node("LD_StageSeed", seed=1, name="tree")},
    "LD_FindPlace": {
        "a": node("EmptyImage", width=32, height=32, batch_size=1, color=255),
        "b": node("EmptyImage", width=32, height=32, batch_size=1, color=0),
        "it": node("LD_FindPlace", before=["a", 0], draft=["b", 0], share=0.5, grow=0),
    },
    "LD_LayerDiffuseApply": {"it": layer_diffuse("random_lora.safetensors")},
    "LD_SplitFrames": {
        "a": node("EmptyImage", width=32, height=32, batch_size=3, color=255),
        "l": node("EmptyLatentImage", width=32, height=32, batch_size=3),
        "it": node("LD_SplitFrames", frames=3, image=["a", 0], latent=["l", 0]),
    },
    "LD_TransparentDecode": {
        "a": node("EmptyImage", width=64, height=64, batch_size=1, color=255),
        "l": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "it": transparent_decode(["a", 0], latent=["l", 0], augmentations="2"),
    },
    "LD_TransparentEncode": {
        "a": node("EmptyImage", width=64, height=64, batch_size=1, color=255),
        "it": transparent_encode(["a", 0]),
    },
    "LD_GenerateLayers": {"it": generate_layers("a red ball by the sea", width=96, height=96, steps=1)},
    "LD_LearnWords": {**one_ball(), "it": learn(name="krk-leak", steps=1, overwrite=True)},
    "LD_LayerTrainingData": {**one_ball(), "it": training_data()},
    "LD_SaveLayerLora": {
        **one_ball(),
        "d": training_data(),
        "t": train_lora("d", steps=1),
        "it": node(
            "LD_SaveLayerLora",
            layers=["a", 0],
            layer="ball",
            lora=["t", 0],
            name="leak",
            strength=1.0,
            overwrite=True,
        ),
    },
}
"""For every node of ours: a prompt in which it is called "it" and gets its models from the node "loader". A
new node needs an entry here."""


def interrupt(arguments):
    comfy.model_management.interrupt_current_processing()
    comfy.model_management.throw_exception_if_processing_interrupted()


def test_every_node_is_looked_at(host):
    assert sorted(EXAMPLES) == of_ours()


@pytest.mark.parametrize("node_id", sorted(EXAMPLES))
def test_sampling_with_the_original_gives_the_same_bits_after_the_node_ran_broke_and_was_interrupted(
    host, node_id
):
    Image.new("RGBA", (16, 16), (255, 0, 0, 255)).save(host.input / "red.png")
    host.fresh()
    model, positive, negative = models(host)
    tiny.write(tiny.FOLDER, "random_lora", tiny.forge_lora(tiny.shapes_of(model)))
    before = sample(model, positive, negative)

    prompt = {**LOADER, **EXAMPLES[node_id]}
    schema = comfy_nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA()
    name = "it" if "it" in prompt else "loader"
    results = [host.value(prompt, name, slot) for slot in range(len(schema.outputs))]
    assert host.value(prompt, "loader", 0) is model, "the model was loaded anew: nothing is compared"
    touched = [r for r, o in zip(results, schema.outputs, strict=True) if o.get_io_type() == "MODEL"] or [
        model
    ]
    for patched in touched:
        sample(patched, positive, negative)
        with pytest.raises(RuntimeError, match="broken on purpose"):
            sample(patched, positive, negative, explode)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(patched, positive, negative, interrupt)
    assert torch.equal(sample(model, positive, negative), before)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(host):
    model, positive, negative = models(host)
    first = sample(model, positive, negative)
    assert torch.equal(sample(model, positive, negative), first)
    with torch.inference_mode():
        other = comfy_nodes.common_ksampler(
            model, 8, 3, 3.0, "euler", "normal", positive, negative, {"samples": torch.zeros(1, 4, 16, 16)}
        )[0]
    assert not torch.equal(other["samples"], first)
