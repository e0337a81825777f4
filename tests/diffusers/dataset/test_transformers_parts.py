"""The parts that run models of transformers, on tiny random models in the layout of the published ones."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from layered_core.errors import LayeredError
from layered_diffusers.dataset import florence
from layered_diffusers.dataset.protocols import Picture
from layered_diffusers.dataset.providers import USUAL, Setting, load_part, load_parts

WORDS = [
    "a",
    "red",
    "ball",
    "blue",
    "star",
    "the",
    "cat",
    ".",
    "and",
    "in",
    "image",
    "what",
    "locate",
    "with",
    "mask",
]


def tokenizer(folder, special, words=WORDS, extra=None, cls=None, sep=None, fused=False):
    """Write a tokenizer of whole words."""
    vocabulary = {x: i for i, x in enumerate([*special.values(), *words])}
    unknown = special["unk_token"]
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    if fused:  # as the published tokenizers, which put no space between places
        made.decoder = decoders.Fuse()
    if cls is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}", special_tokens=[(x, vocabulary[x]) for x in (cls, sep)]
        )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special, **(extra or {}))
    fast.save_pretrained(folder)
    return len(fast)


BERT = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip
CLIP = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture
def picture():
    pixels = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))
    return Picture(pixels)


def save(model, folder):
    torch.manual_seed(0)
    model.save_pretrained(folder)
    return folder


def setting():
    return Setting(lambda: None, device="cpu")


@pytest.fixture
def depth_folder(tmp_path):
    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    return save(transformers.DepthAnythingForDepthEstimation(config), tmp_path / "depth")


def test_depth_anything_orders_by_the_median_of_what_it_predicts(depth_folder, picture):
    part = load_part("depth", f"depth-anything={depth_folder}", setting())
    near = part.near(picture)
    assert near.shape == (40, 56)
    order = near.flatten().argsort()
    masks = torch.zeros(3, 40 * 56)
    masks[0, order[-300:]], masks[1, order[:300]], masks[2, order[900:1200]] = 1, 1, 1
    assert list(part.order(picture, masks.reshape(3, 40, 56))) == [1, 2, 0]
    assert part.about["model"] == str(depth_folder)
    assert part.about["transformers"] == transformers.__version__


def test_blip_describes(tmp_path, picture):
    torch.manual_seed(0)
    folder = tmp_path / "blip"
    size = tokenizer(folder, BERT, cls="[CLS]", sep="[SEP]")
    ids = {"bos_token_id": 2, "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3}
    text = transformers.BlipTextConfig(
        vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        encoder_hidden_size=16, projection_dim=8, max_position_embeddings=64, **ids,
    )  # fmt: skip
    vision = transformers.BlipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16,
    )  # fmt: skip
    config = transformers.BlipConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8, image_text_hidden_size=8
    )
    save(transformers.BlipForConditionalGeneration(config), folder)
    caption = load_part("captioner", f"blip={folder}", setting()).describe(picture)
    assert caption.text
    assert set(caption.text.split()) <= set(WORDS)
    assert caption == load_part("captioner", f"blip={folder}", setting()).describe(picture)


@pytest.fixture
def grounding_folder(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "dino"
    size = tokenizer(folder, BERT, cls="[CLS]", sep="[SEP]")
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ).to_dict(),
        text_config=transformers.BertConfig(
            vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        ).to_dict(),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=20, max_text_len=64, num_feature_levels=4,
        use_pretrained_backbone=False,
    )  # fmt: skip
    return save(transformers.GroundingDinoForObjectDetection(config), folder)


@pytest.fixture
def sam2_folder(tmp_path):
    torch.manual_seed(0)
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[64, 64], patch_kernel_size=[7, 7], patch_stride=[4, 4],
        patch_padding=[3, 3], query_stride=[2, 2], window_positional_embedding_background_size=[7, 7],
        num_query_pool_stages=3, blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1], window_size_per_stage=[4, 4, 4, 2], global_attention_blocks=[3],
    )  # fmt: skip
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone.to_dict(), backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], fpn_hidden_size=16,
    )  # fmt: skip
    config = transformers.Sam2Config(
        vision_config=vision.to_dict(),
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
            "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    return save(transformers.Sam2Model(config), tmp_path / "sam2")


def test_grounded_sam2_makes_a_mask_in_each_box_of_a_phrase(grounding_folder, sam2_folder, picture):
    part = load_part("segmenter", f"grounded-sam2={grounding_folder},{sam2_folder}", setting())
    phrases = ["A red ball.", "a blue star"]
    boxes = part.boxes(picture, phrases)
    assert boxes
    assert {b.phrase for b in boxes} <= set(phrases)
    for box in boxes:
        left, top, right, bottom = box.corners
        assert 0 <= left <= right <= 1
        assert 0 <= top <= bottom <= 1
    assert [b.score for b in boxes] == sorted((b.score for b in boxes), reverse=True)
    found = part.find(picture, phrases)
    assert len(found) == len(boxes)
    for item in found:
        assert item.mask.shape == (40, 56)
        assert set(item.mask.unique().tolist()) <= {0.0, 1.0}
        assert 0 <= item.score <= 1
    assert part.find(picture, []) == []


def test_a_score_of_a_phrase_is_that_of_its_own_tokens(grounding_folder, sam2_folder, picture, monkeypatch):
    part = load_part("segmenter", f"grounded-sam2={grounding_folder},{sam2_folder}", setting())
    forward = part.detector.forward

    def planted(**given):
        out = forward(**given)
        ids = part.tokenizer.convert_ids_to_tokens(given["input_ids"][0])
        logits = torch.full_like(out.logits, -9.0)
        logits[0, 3, ids.index("star")] = 2.0
        logits[0, 5, ids.index("ball")] = 1.0
        logits[0, 7, ids.index(".")] = 5.0  # between two phrases: nobody's
        out.logits = logits
        return out

    monkeypatch.setattr(part.detector, "forward", planted)
    boxes = part.boxes(picture, ["a red ball", "a blue star"])
    assert [(b.phrase, round(b.score, 4)) for b in boxes] == [("a blue star", 0.8808), ("a red ball", 0.7311)]


@pytest.mark.slow
def test_sam3_finds_masks_by_words(tmp_path, picture):
    torch.manual_seed(0)
    folder = tmp_path / "sam3"
    size = tokenizer(folder, CLIP, cls="<s>", sep="</s>")
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model", **small, "num_hidden_layers": 2, "image_size": 56, "patch_size": 14,
                "window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 28,
            },
            "fpn_hidden_size": 32, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={
            "model_type": "clip_text_model", "vocab_size": size, **small, "num_hidden_layers": 1,
            "projection_dim": 32, "max_position_embeddings": 32, "eos_token_id": 3, "bos_token_id": 2,
            "pad_token_id": 0,
        },
        geometry_encoder_config={**small, "num_layers": 1, "roi_size": 2},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 1, "num_queries": 6},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )  # fmt: skip
    save(transformers.Sam3Model(config), folder)
    part = load_part("segmenter", f"sam3={folder}", setting())
    found = part.find(picture, ["a red ball", "a blue star"])
    assert found
    assert {x.phrase for x in found} <= {"a red ball", "a blue star"}
    for item in found:
        assert item.mask.shape == (40, 56)
        assert set(item.mask.unique().tolist()) <= {0.0, 1.0}
        assert 0.05 < item.score <= 1
    assert part.find(picture, []) == []


def test_a_missing_model_says_which_and_how_to_get_it_and_all_at_once():
    with pytest.raises(LayeredError) as caught:
        load_parts(USUAL, setting())
    text = str(caught.value)
    for model in (
        "florence-community/Florence-2-base", "IDEA-Research/grounding-dino-tiny",
        "depth-anything/Depth-Anything-V2-Small-hf",
    ):  # fmt: skip
        assert f"hf download {model}" in text
    assert "\n" not in text


def test_a_broken_model_and_one_of_another_kind_are_named(depth_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayeredError, match="cannot be loaded"):
        load_part("depth", f"depth-anything={tmp_path / 'empty'}", setting())
    weights = depth_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(LayeredError, match="cannot be loaded"):
        load_part("depth", f"depth-anything={depth_folder}", setting())
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text(json.dumps({"model_type": "depth_anything"}))
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(LayeredError, match="cannot be loaded"):
        load_part("depth", f"depth-anything={tmp_path / 'pickled'}", setting())


@pytest.fixture
def florence_folder(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "florence"
    places = [f"<loc_{i}>" for i in range(1000)]
    marks = ["<poly>", "</poly>", "<sep>", "<image>", *places]
    size = tokenizer(
        folder, CLIP, words=[*WORDS, *marks], cls="<s>", sep="</s>", fused=True,
        extra={"extra_special_tokens": {"image_token": "<image>"}},
    )  # fmt: skip
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    fast.add_tokens(marks)
    image = transformers.CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False, resample=3, image_seq_length=2
    )
    image.image_seq_length = 2
    parses = {
        "pure_text": {}, "phrase_grounding": {"banned_grounding_tokens": ["the image"]}, "polygons": {},
    }  # fmt: skip
    transformers.Florence2Processor(image, fast, post_processor_config=parses).save_pretrained(folder)
    image_id = fast.convert_tokens_to_ids("<image>")
    ids = {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 3}
    config = transformers.Florence2Config(
        vision_config={
            "embed_dim": [8, 8, 8, 8], "num_heads": [1, 1, 1, 1], "num_groups": [1, 1, 1, 1], "depths": [1, 1, 1, 1],
            "projection_dim": 16, "window_size": 2, "max_position_embeddings": 10,
        },
        text_config={
            "model_type": "bart", "vocab_size": max(size, len(fast)), "d_model": 16, "encoder_layers": 1,
            "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16, "forced_bos_token_id": None, "forced_eos_token_id": None, **ids,
        },
        image_token_id=image_id, **ids,
    )  # fmt: skip
    return save(transformers.Florence2ForConditionalGeneration(config), folder)


def test_florence2_describes_and_finds_masks(florence_folder, picture, monkeypatch):
    monkeypatch.setattr(florence, "_MOST_TOKENS", 8)
    part = load_part("captioner", f"florence2={florence_folder}", setting())
    caption = part.describe(picture)
    assert isinstance(caption.text, str)
    for item in part.find(picture, ["a red ball"]):
        assert item.mask.shape == (40, 56)
    generate = part.model.generate

    def planted(**given):
        """Answer with a triangle over the left half of the picture, each token with its own probability."""
        out = generate(**{**given, "max_new_tokens": 1})
        words = ["<poly>", "<loc_0>", "<loc_0>", "<loc_499>", "<loc_0>", "<loc_0>", "<loc_999>", "</poly>"]
        ids = part.processor.tokenizer.convert_tokens_to_ids(words)
        logits = torch.full((1, part.model.config.text_config.vocab_size), -50.0)
        scores = []
        for i in ids:
            step = logits.clone()
            step[0, [i, 2]] = 0.0
            scores.append(step)
        out.sequences = torch.tensor([[3, *ids]])
        out.scores = tuple(scores)
        return out

    monkeypatch.setattr(part.model, "generate", planted)
    (found,) = part.find(picture, ["a red ball"])
    assert found.score == pytest.approx(0.5, abs=1e-3)
    assert float(found.mask[2, 2]) == 1.0
    assert float(found.mask[:, 32:].sum()) == 0.0
    assert float(found.mask.mean()) == pytest.approx(0.25, abs=0.04)
