"""Files that change weights: all three ways to name tensors give the same result, and errors name what does
not fit."""

import pytest
import torch

from layered_core.errors import LayeredError
from layered_core.transparency.layer_diffuse_files import mode_of
from layered_core.transparency.layer_diffuse_weights import (
    LowRank,
    Patches,
    check_picture,
    check_pictures,
    concat_term,
    diffusers_name,
    patched_weight,
    read_patches,
    transformer_blocks,
    with_pictures,
)
from layered_core.transparency.transparent_networks import over_mid_grey

Q = "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
OUT = "input_blocks.4.1.transformer_blocks.0.attn1.to_out.0.weight"
SHAPES = {
    "input_blocks.0.0.weight": (8, 4, 3, 3),
    "input_blocks.0.0.bias": (8,),
    "middle_block.0.in_layers.2.weight": (8, 8, 3, 3),
    "label_emb.0.0.weight": (8, 8),
    Q: (8, 8),
    OUT: (8, 8),
}


def read(file):
    return read_patches(file, SHAPES, 2, "mine.safetensors", "SDXL")


@pytest.mark.parametrize(
    ("up", "down", "alpha"),
    [
        (f"diffusion_model.{Q}::lora::0", f"diffusion_model.{Q}::lora::1", f"diffusion_model.{Q}::lora::2"),
        *[
            (f"{prefix}{module}{u}", f"{prefix}{module}{d}", f"{prefix}{module}.alpha")
            for prefix, module in (
                ("diffusion_model.", Q.removesuffix(".weight")),
                ("unet.", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
                ("", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
            )
            for u, d in (
                (".lora_B.weight", ".lora_A.weight"),
                (".lora.up.weight", ".lora.down.weight"),
                (".lora_up.weight", ".lora_down.weight"),
            )
        ],
    ],
)
def test_a_lora_is_the_same_in_every_naming(up, down, alpha):
    file = {up: torch.randn(8, 2), down: torch.randn(2, 8), alpha: torch.tensor(1.0)}
    patches = read(file)
    assert list(patches.lora) == [Q]
    assert torch.allclose(patches.lora[Q].difference, 0.5 * file[up] @ file[down])
    assert patches.diff == {}
    assert patches.pictures == 0


def test_without_an_alpha_the_scale_is_1():
    low = LowRank(torch.randn(8, 2), torch.randn(2, 8))
    assert torch.allclose(low.difference, low.up @ low.down)
    weight = torch.randn(8, 8)
    assert torch.allclose(patched_weight(weight, low, 0.5), weight + 0.5 * low.up @ low.down)
    assert patched_weight(weight.half(), low, 0.5).dtype == torch.float16


def test_a_widened_first_convolution_is_parted_and_adds_the_same():
    wide = torch.randn(8, 12, 3, 3)
    for key in ("diffusion_model.input_blocks.0.0.weight::diff::0", "conv_in.weight", "unet.conv_in.weight"):
        patches = read({key: wide})
        assert patches.pictures == 2
        x, c = torch.randn(2, 4, 6, 5), torch.randn(2, 8, 6, 5)
        whole = torch.nn.functional.conv2d(torch.cat([x, c], 1), wide, padding=1)
        plain = torch.nn.functional.conv2d(x, patches.diff["input_blocks.0.0.weight"], padding=1)
        assert torch.allclose(plain + concat_term(c, patches.concat), whole, atol=1e-5)
        assert torch.allclose(concat_term(c, patches.concat, 0.5), concat_term(c, patches.concat) * 0.5)


def test_what_fits_no_weight_or_another_shape_is_named_with_file_and_model():
    with pytest.raises(
        LayeredError,
        match=r"'mine\.safetensors' does not fit the model \(SDXL\): it has no "
        r"diffusion_model\.input_blocks\.99",
    ):
        read({"diffusion_model.input_blocks.99.0.weight::diff::0": torch.zeros(1)})
    with pytest.raises(
        LayeredError, match=r"another shape there: middle_block\.0\.in_layers\.2\.weight \[4, 8, 3, 3\]"
    ):
        read({"diffusion_model.middle_block.0.in_layers.2.weight::diff::0": torch.zeros(4, 8, 3, 3)})
    with pytest.raises(LayeredError, match="another shape there"):
        read(
            {
                f"diffusion_model.{Q}::lora::0": torch.zeros(8, 2),
                f"diffusion_model.{Q}::lora::1": torch.zeros(3, 8),
            }
        )
    with pytest.raises(LayeredError, match="lacks one half"):
        read({f"diffusion_model.{Q}::lora::0": torch.zeros(8, 2)})
    with pytest.raises(LayeredError, match="it has no"):
        read({f"diffusion_model.{Q}::lora::3": torch.zeros(8, 2)})


def test_a_file_that_takes_another_number_of_pictures_than_the_mode_is_refused():
    check_pictures(Patches(), mode_of("transparent layer"), "x")
    with pytest.raises(LayeredError, match=r"pictures that it takes is 1; allowed: 2"):
        check_pictures(
            Patches(concat=torch.zeros(8, 4, 3, 3)),
            mode_of("foreground and blend to background"),
            "layer_xl_fg2ble.safetensors",
        )


def test_a_file_that_changes_weights_makes_one_picture():
    with pytest.raises(
        LayeredError,
        match=r"pictures that it makes is 1; allowed: 3 in the mode 'foreground, background and blend'",
    ):
        check_pictures(
            Patches(), mode_of("foreground, background and blend"), "layer_sd15_transparent_attn.safetensors"
        )


def test_a_picture_of_another_size_is_refused_with_both_sizes():
    check_picture("foreground", (512, 768), (64, 96))
    with pytest.raises(LayeredError, match=r"foreground: size of the picture is '512x512'; allowed: 768x512"):
        check_picture("foreground", (512, 512), (64, 96))


def test_alpha_is_laid_over_mid_grey_and_an_opaque_picture_is_itself():
    picture = torch.rand(1, 4, 2, 3)
    shown = over_mid_grey(picture)
    assert torch.allclose(shown, picture[:, :3] * picture[:, 3:] + 0.5 * (1 - picture[:, 3:]), atol=1e-6)
    assert torch.equal(over_mid_grey(picture[:, :3]), picture[:, :3])


def test_names_of_every_part_of_a_unet():
    expected = {
        "input_blocks.0.0.weight": "conv_in.weight",
        "input_blocks.3.0.op.bias": "down_blocks.0.downsamplers.0.conv.bias",
        "input_blocks.4.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
        "input_blocks.4.1.norm.weight": "down_blocks.1.attentions.0.norm.weight",
        "middle_block.2.out_layers.3.weight": "mid_block.resnets.1.conv2.weight",
        "middle_block.1.proj_out.bias": "mid_block.attentions.0.proj_out.bias",
        "output_blocks.2.2.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
        "output_blocks.3.0.emb_layers.1.bias": "up_blocks.1.resnets.0.time_emb_proj.bias",
        "out.2.weight": "conv_out.weight",
        "label_emb.0.2.bias": "add_embedding.linear_2.bias",
        "something.else": "something.else",
    }
    assert {k: diffusers_name(k, 2) for k in expected} == expected


def test_transformer_blocks_are_counted_input_output_middle_in_either_naming():
    ldm = [
        "middle_block.1",
        "output_blocks.11.1",
        "output_blocks.3.1",
        "input_blocks.10.1",
        "input_blocks.2.1",
    ]
    theirs = ["mid_block.attentions.0", "up_blocks.3.attentions.2", "up_blocks.1.attentions.0"]
    theirs += ["down_blocks.3.attentions.0", "down_blocks.0.attentions.1"]
    for names in (ldm, theirs):
        weights = [f"{n}.transformer_blocks.0.attn1.to_q.weight" for n in names]
        assert transformer_blocks(weights) == [f"{n}.transformer_blocks.0" for n in reversed(names)]


def test_pictures_terms_repeat_in_order_over_the_rows():
    out, term = torch.randn(5, 2, 3, 3), torch.randn(2, 2, 3, 3).half()
    added = with_pictures(out, term) - out
    for row in range(5):
        torch.testing.assert_close(added[row], term[row % 2].float(), atol=1e-6, rtol=0)


def test_given_pictures_want_the_whole_picture_sampled():
    with pytest.raises(
        LayeredError, match=r"latent's size is '4x8'; allowed: 8x8\. Sample the whole picture at once"
    ):
        with_pictures(torch.zeros(2, 3, 8, 4), torch.zeros(1, 3, 8, 8))
