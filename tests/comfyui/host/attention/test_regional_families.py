"""Regional Prompt Attention on other families of UNets: tiny random SDXL and inpainting UNets work."""

from functools import partial

import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import pytest
import torch
from regional_scene import WIDGETS, apply, encode, halves, predicted

SMALL_TEXT = {
    "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "max_position_embeddings": 77,
    "hidden_act": "gelu", "eos_token_id": 49407, "layer_norm_eps": 1e-5, "vocab_size": 49408,
}  # fmt: skip


class SmallXLText(comfy.sdxl_clip.SDXLClipModel):
    """SDXL's two encoders, small, with random weights."""

    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006 - as ComfyUI has it
        torch.nn.Module.__init__(self)
        text = partial(
            comfy.sd1_clip.SDClipModel, layer="hidden", layer_idx=-2, device=device, dtype=dtype,
            layer_norm_hidden_state=False,
            textmodel_json_config=dict(SMALL_TEXT),
        )  # fmt: skip
        self.clip_l, self.clip_g = (
            text(),
            text(special_tokens={"start": 49406, "end": 49407, "pad": 0}, return_projected_pooled=True),
        )
        self.dtypes = {dtype}
        torch.manual_seed(0)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.2)


def small_unet(kind, **shape):
    config = kind({
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "use_spatial_transformer": True, "legacy": False, "num_head_channels": 16,
        "transformer_depth": [0, 2],
        "transformer_depth_middle": 2, "transformer_depth_output": [0, 0, 2, 2],
        "use_temporal_attention": False, "use_temporal_resblock": False,
        **shape,
    })  # fmt: skip
    config.unet_extra_config = {}
    with torch.inference_mode(False):
        model = config.get_model({}, device="cpu")
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    )


def test_sdxl_keeps_both_encoders_pooled_words_and_sizes(regions):
    model = small_unet(
        comfy.supported_models.SDXL,
        context_dim=64,
        use_linear_in_transformer=True,
        num_classes="sequential",
        adm_in_channels=32 + 6 * 256,
    )
    with torch.inference_mode(False):
        target = comfy.supported_models_base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, SmallXLText)
        clip = comfy.sd.CLIP(target, parameters=1)
    out, positive, negative = apply(regions, model, clip, negative="dark")
    assert torch.equal(
        positive[0][1]["pooled_output"], encode(clip, WIDGETS["prompt"])[0][1]["pooled_output"]
    )
    sized = [[words, {**rest, "width": 512, "height": 640}] for words, rest in positive]
    cond = predicted(out, positive, negative)[1]
    plain = predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, "dark"))[1]
    assert float((cond - plain).abs().max()) > 1e-4
    assert not torch.equal(predicted(out, sized, negative)[1], cond)
    assert len(regions.patch.cross_attentions(model.model.diffusion_model)) == 8


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("family", ["SD15", "SD20"])
def test_stable_diffusion_1_and_2_and_their_inpainting_variants_work(regions, loaded, family, channels):
    heads = {"num_heads": 2, "num_head_channels": -1} if family == "SD15" else {}
    kind = getattr(comfy.supported_models, family)
    model = small_unet(
        kind, context_dim=64, in_channels=channels, use_linear_in_transformer=family == "SD20", **heads
    )
    _, clip = loaded
    same = halves(regions, "a red ball", "a red ball")
    out, *words = apply(regions, model, clip, same, prompt="in a meadow", global_weight=0.0, emphasis=0.0)
    mask = (
        {"concat_latent_image": torch.zeros(1, 4, 16, 16), "concat_mask": torch.ones(1, 1, 128, 128)}
        if channels == 9
        else {}
    )
    seen, meadow, ball = (
        predicted(m, *([[x, {**rest, **mask}] for x, rest in c] for c in cs))[1]
        for m, cs in (
            (out, words),
            *((model, (encode(clip, x), encode(clip, ""))) for x in ("in a meadow", "a red ball")),
        )
    )
    # Layers that cover the canvas and get all of the attention: as their words for a prompt.
    torch.testing.assert_close(seen, ball, atol=1e-4, rtol=1e-3)
    assert float((meadow - ball).abs().max()) > 1e-3
