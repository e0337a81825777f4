"""Add Layer by Prompt and the nodes of a stage refuse bad input and name it."""

import pytest
from graph import node, regenerate
from stage_scene import add, stages


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (add(), "width is 0; allowed: 1..16384. Connect layers or an image"),
        (add(width=40), "height is 0; allowed: 1..16384. Connect layers or an image"),
        (add(width=40, layers=["sky", 0]), "width and height are 40 and 0; allowed: both 0, or both above 0"),
        (add("", width=64, height=64), "its prompt is empty. Write what is to be added"),
        (add("", name="dog", layers=["sky", 0]), "layer 'dog': its prompt is empty"),
        (add(x=500, width=10, height=10, layers=["sky", 0]), "layer 'a red ball': place is 'x 500, y 0'"),
        (add(mask=["z", 0], layers=["sky", 0]), "mask is 0 everywhere"),
        (add(mask=["m", 0], layers=["sky", 0]), "mask size is '40x40'; allowed: the picture's, 128x96"),
        (
            add(
                alpha="transparent",
                decoder="vae_transparent_decoder.safetensors",
                width=64,
                height=48,
                layers=["sky", 0],
            ),
            "is missing: 208 MB",
        ),
        (
            node(
                "LD_StageLayer",
                image=["e", 0],
                paste=["r", 2],
                name="it",
                prompt="",
                negative="",
                alpha="transparent",
            ),
            "image: number of channels is 3; allowed: 4, RGBA. Connect the image of Transparent Decode",
        ),
        (add(feather=float("nan"), layers=["sky", 0]), "nan"),
    ],
)
def test_bad_input_is_named(host, stage, says):
    prompt = stages(
        it=stage, z=node("SolidMask", value=0.0, width=128, height=96),
        m=node("SolidMask", value=1.0, width=40, height=40),
        e=node("EmptyImage", width=32, height=32, batch_size=1, color=255), r=regenerate("sky", "sky"),
    )  # fmt: skip
    assert says in host.error_of({**prompt, "end": node("PreviewImage", images=["it", 1])})


@pytest.mark.parametrize(
    ("field", "value"),
    [("denoise", 0.0), ("denoise", 1.5), ("steps", 0), ("sampler_name", "magic"), ("alpha", "magic")],
)
def test_values_out_of_range_are_refused_before_running(host, field, value):
    valid, _, _, errors = host.validate(
        {**stages(it=add(layers=["sky", 0], **{field: value})), "end": node("PreviewImage", images=["it", 1])}
    )
    assert not valid
    assert str(value) in str(errors)


def test_a_draft_of_another_size_is_refused(host):
    prompt = {
        "a": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "b": node("EmptyImage", width=32, height=64, batch_size=1, color=0),
        "it": node("LD_FindPlace", before=["a", 0], draft=["b", 0], share=0.5, grow=0),
        "end": node("MaskPreview", mask=["it", 0]),
    }  # fmt: skip
    assert "draft size is '32x64'; allowed: the picture's, 64x64" in host.error_of(prompt)
