"""The storybook in diffusers, with the core's regional attention in its cross-attentions."""

from pathlib import Path

import torch


class Twin:
    """The same weights in diffusers, and the noise it predicts from the same input, words and layers."""

    def __init__(self, folder):
        from diffusers import DDPMScheduler, UNet2DConditionModel

        self.unet = UNet2DConditionModel.from_pretrained(Path(folder, "unet")).eval()
        self.alphas = DDPMScheduler.from_pretrained(Path(folder, "scheduler")).alphas_cumprod

    def predict(self, regions, x, sigma, contexts, attentions):
        """Return the denoised uncond and cond predictions; ``attentions`` are those of both halves, or None
        for the plain prompts."""
        from diffusers.models.attention_processor import AttnProcessor2_0

        attention = regions.attention
        alpha = 1 / (sigma**2 + 1)
        timestep = (self.alphas - alpha).abs().argmin()

        class Regional(AttnProcessor2_0):
            def __init__(self, name):
                self.name = name

            def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
                q, k, v = (
                    attn.to_q(hidden_states),
                    attn.to_k(encoder_hidden_states),
                    attn.to_v(encoder_hidden_states),
                )
                plain = attention.plain(attn.heads)
                out = plain(q, k, v, None)
                side = int(q.shape[1] ** 0.5)
                for row, half in enumerate(attentions):
                    if half is not None:
                        at = slice(row, row + 1)
                        out[at] = half(
                            q[at], k[at], v[at], out[at], size=(side, side), sigma=sigma, heads=attn.heads,
                            block=self.name,
                            project=lambda c: (attn.to_k(c), attn.to_v(c)), attend=plain,
                        )  # fmt: skip
                return attn.to_out[0](out)

        before = self.unet.attn_processors
        if attentions is not None:
            self.unet.set_attn_processor({n: Regional(n) if ".attn2." in n else p for n, p in before.items()})
        try:
            with torch.inference_mode():
                scaled = (x * alpha**0.5).expand(2, -1, -1, -1)
                v = self.unet(scaled, timestep, contexts).sample
        finally:
            self.unet.set_attn_processor(before)
        return (x * alpha - v * sigma * alpha**0.5).chunk(2)
