"""Tiny random transformers of diffusers with text encoders and tokenizers built on the fly: nothing is
downloaded."""

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from demo.world.places import MODEL

WIDTH = 48
"""Width of encoded text."""

_VOCABULARY = """
a red blue green ball star house in the meadow at night and , . : ; system user assistant
describe image by detailing color shape size texture quantity text spatial of objects
"""
WORDS = _VOCABULARY.split()


def filled(model, seed=0):
    """Give a model random weights under which every part matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = p.shape[-1] ** -0.5 if p.ndim == 2 else 0.05
            centre = 1 if "norm" in name and name.endswith("weight") and p.ndim == 1 else 0
            p.copy_(centre + scale * torch.randn(p.shape, generator=generator))
    return model.eval()


def word_tokenizer(end=None, template=None, most=512):
    """Return a tokenizer of whole words; ``end`` is put after every text."""
    marks = ["<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {w: i for i, w in enumerate([*marks, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    if end is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
        additional_special_tokens=marks[3:], model_max_length=most,
    )  # fmt: skip
    if template is not None:
        made.chat_template = template
    return made


def clip_tokenizer():
    return CLIPTokenizer.from_pretrained(MODEL / "tokenizer", local_files_only=True)


def clip(kind, width):
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=width, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    return filled(kind(config), seed=1)


def t5():
    config = T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return filled(T5EncoderModel(config), seed=2)


def vae():
    blocks = 4
    return filled(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=(8,) * blocks, latent_channels=16, norm_num_groups=4, use_quant_conv=False,
            use_post_quant_conv=False, scaling_factor=0.36, shift_factor=0.1,
        ),
        seed=3,
    )  # fmt: skip


def schedule(**more):
    return FlowMatchEulerDiscreteScheduler(**more)


def flux(layers=2, guidance_embeds=False):
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=layers, num_single_layers=0 if layers == 1 else 2, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=WIDTH, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6),
        guidance_embeds=guidance_embeds,
    )  # fmt: skip
    return FluxPipeline(
        schedule(use_dynamic_shifting=True), vae(), clip(CLIPTextModel, 32), clip_tokenizer(), t5(),
        word_tokenizer("</s>"), filled(transformer),
    )  # fmt: skip


def sd3(layers=3):
    transformer = SD3Transformer2DModel(
        sample_size=32, num_layers=layers, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=WIDTH,
        caption_projection_dim=64, pooled_projection_dim=32, pos_embed_max_size=32, dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        filled(transformer), schedule(shift=3.0), vae(), clip(CLIPTextModelWithProjection, 16), clip_tokenizer(),
        clip(CLIPTextModelWithProjection, 16), clip_tokenizer(), t5(), word_tokenizer("</s>"),
    )  # fmt: skip


def qwen(layers=3, terminal=None):
    transformer = QwenImageTransformer2DModel(
        in_channels=64, num_layers=layers, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    coder = AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    text = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 4, 4]},
        },
        vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16,
                       "out_hidden_size": WIDTH, "fullatt_block_indexes": [0]},
    )  # fmt: skip
    model = QwenImagePipeline(
        schedule(use_dynamic_shifting=True, shift_terminal=terminal), filled(coder, seed=3),
        filled(Qwen2_5_VLForConditionalGeneration(text), seed=4), word_tokenizer(most=2048), filled(transformer),
    )  # fmt: skip
    before = model.prompt_template_encode.split("{}")[0]
    model.prompt_template_encode_start_idx = len(model.tokenizer(before).input_ids)
    return model


def zimage(layers=3):
    transformer = ZImageTransformer2DModel(
        dim=256, n_layers=layers, n_refiner_layers=1, n_heads=8, n_kv_heads=8, cap_feat_dim=WIDTH,
        axes_dims=[8, 12, 12], axes_lens=[512, 64, 64],
    )  # fmt: skip
    config = Qwen3Config(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=24,
    )  # fmt: skip
    each = "<|im_start|> user {{ m['content'] }} <|im_end|>"
    template = f"{{% for m in messages %}}{each}{{% endfor %}} <|im_start|> assistant"
    return ZImagePipeline(
        schedule(shift=3.0), vae(), filled(Qwen3Model(config), seed=4), word_tokenizer(template=template),
        filled(transformer),
    )  # fmt: skip


TINY = {"flux": flux, "sd3": sd3, "qwen": qwen, "zimage": zimage}
"""Every family, by its key; an argument says how many layers it has."""
