"""The pipeline: pictures from words and from layer documents, on the storybook model or any Stable Diffusion folder."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from layered_core.attention.regional_attention import Settings
from layered_core.canvas.compositing import GREY, composite, over_colour
from layered_core.canvas.masks import mask_pyramid
from layered_core.document import MAX_SIDE, LayerDocument
from layered_core.errors import check_number, check_whole, invalid
from layered_core.formats.pictures import to_image
from layered_core.painting.pasting import grow
from layered_core.painting.repaint import Repaint, plan_document, plan_repaint, tighten
from layered_core.painting.stages import changed_region
from layered_diffusers import stages
from layered_diffusers.methods.change_map import ChangeMap, InpaintInput
from layered_diffusers.methods.masked_control import InpaintControl
from layered_diffusers.methods.regional_attention import RegionalPrompts
from layered_diffusers.models import vae
from layered_diffusers.models.loading import STORYBOOK, StableDiffusion, find_model, load_model
from layered_diffusers.models.text import encode, stack
from layered_diffusers.sampling import Method, Progress, Run, check_seeds, noised, sample
from layered_diffusers.transparent import generate_in_place, generate_together, generate_transparent, read_files, scene_document

if TYPE_CHECKING:
    from diffusers import ControlNetModel
    from typing_extensions import Unpack

    from layered_diffusers.stages import Staging
    from layered_diffusers.transparent import Painting, Together


class Sampling(TypedDict, total=False):
    """Options of :meth:`LayeredDiffusionPipeline.generate` that every way of making a picture passes on."""

    negative: str
    steps: int
    guidance: float
    methods: Sequence[Method]
    progress: Progress | None


class LayeredDiffusionPipeline:
    """Layer-wise generation with one Stable Diffusion model.

    ``pipeline = LayeredDiffusionPipeline.from_pretrained()`` then :meth:`generate_layer`, :meth:`add_layer`, :meth:`render`.
    All pictures are Pillow images; all masks mean 1 (white) = may change.
    """

    def __init__(self, model: StableDiffusion, side: int | None = None) -> None:
        """``model``: a loaded diffusers pipeline. ``side``: default picture side in pixels; None for the model's own."""
        self.model = model
        self.scale = 8 if not hasattr(model, "vae_scale_factor") else int(model.vae_scale_factor)
        self.side = side or int(model.unet.config.sample_size) * self.scale

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        sampler: str | None = None,
    ) -> LayeredDiffusionPipeline:
        """Load a model from disk.

        Args:
            path_or_id: a folder in the diffusers layout (SD 1.x, 2.x, XL), an id in the local Hugging Face cache, or None for the storybook.
            device: None for the GPU when there is one.
            dtype: None for float16 on a GPU, float32 elsewhere.
            sampler: one of :data:`layered_diffusers.models.loading.SAMPLERS`; None for the model's own. Any other scheduler of diffusers' can be
                set as ``pipeline.model.scheduler``.

        Raises:
            LayeredError: the model is missing, broken, or of another family, or there is no such sampler. Nothing is downloaded.
        """
        device = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.float16 if device.type == "cuda" and find_model(path_or_id) != STORYBOOK else torch.float32)
        return cls(load_model(path_or_id, device, dtype, sampler))

    def generate(
        self,
        prompts: Sequence[str],
        *,
        negative: str = "",
        width: int | None = None,
        height: int | None = None,
        steps: int = 25,
        guidance: float = 3.0,
        seeds: Sequence[int] | None = None,
        start: Tensor | None = None,
        strength: float = 1.0,
        methods: Sequence[Method] = (),
        progress: Progress | None = None,
    ) -> Tensor:
        """Sample a batch of pictures; everything else is made of this.

        Args:
            prompts: one a picture.
            negative: what no picture must show.
            width, height: pixels, 1..16384; None for the size of ``start`` or the model's own. Any size: padded inside, cropped after.
            steps: sampling steps, 1..1000.
            guidance: classifier-free guidance, 0..50; 1 turns it off.
            seeds: one a picture, each with its own noise whatever the batch; None for 0, 1, 2, ...
            start: pictures ``[B or 1, 3, H, W]`` in 0..1 to begin from (SDEdit, arXiv 2108.01073), or None for noise alone.
            strength: how far ``start`` is noised, 0 (returned as it is, through the VAE) to 1 (nothing left of it).
            methods: what acts on the run.
            progress: called after each step.

        Returns:
            ``[B, 3, H, W]`` float32 in 0..1 on the CPU.

        Raises:
            LayeredError: a value out of range, named.
        """
        latents, height, width = self.sample_latents(
            prompts, negative=negative, width=width, height=height, steps=steps, guidance=guidance, seeds=seeds, start=start, strength=strength,
            methods=methods, progress=progress,
        )  # fmt: skip
        return self.decode(latents)[..., :height, :width]

    def sample_latents(
        self,
        prompts: Sequence[str],
        *,
        negative: str = "",
        width: int | None = None,
        height: int | None = None,
        steps: int = 25,
        guidance: float = 3.0,
        seeds: Sequence[int] | None = None,
        start: Tensor | None = None,
        strength: float = 1.0,
        methods: Sequence[Method] = (),
        progress: Progress | None = None,
    ) -> tuple[Tensor, int, int]:
        """As :meth:`generate`, not yet decoded: latents ``[B, C, h, w]``, and the height and width to which the padded picture is cropped."""
        check_whole("steps", steps, 1, 1000)
        check_number("guidance", guidance, 0, 50)
        check_number("strength", strength, 0, 1)
        if not prompts:
            raise invalid("prompts", list(prompts), "at least one")
        seeds = check_seeds(seeds, len(prompts))
        if start is not None:
            height = start.shape[-2] if height is None else height
            width = start.shape[-1] if width is None else width
        width = self.side if width is None else width
        height = self.side if height is None else height
        check_whole("width", width, 1, MAX_SIDE)
        check_whole("height", height, 1, MAX_SIDE)

        padded_height, padded_width = self._padded(height), self._padded(width)
        shape = (len(prompts), int(self.model.vae.config.latent_channels), padded_height // self.scale, padded_width // self.scale)
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        noise = torch.cat([torch.randn(1, *shape[1:], generator=g) for g in generators])
        noise = noise.to(self.model.device, self.model.unet.dtype)
        context, added = self._words(list(prompts), negative, padded_width, padded_height)
        scheduler = copy.deepcopy(self.model.scheduler)
        scheduler.set_timesteps(steps, device=self.model.device)
        skipped = steps - min(int(steps * strength + 0.5), steps) if start is not None else 0
        if self.inpaints and not any(isinstance(m, InpaintInput) for m in methods):
            everything = torch.full((1, 3, padded_height, padded_width), 0.5)
            methods = [*methods, self._inpaint_input(everything, torch.ones(padded_height, padded_width))]
        run = Run(
            unet=self.model.unet,
            scheduler=scheduler,
            timesteps=scheduler.timesteps[skipped * scheduler.order :],
            latents=noise * scheduler.init_noise_sigma,
            noise=noise,
            context=context,
            guidance=guidance,
            added=added,
            generators=generators,
        )
        if start is not None:
            clean = self.encode(start).expand(shape)
            if skipped or strength < 1:
                run.latents = noised(run, clean, 0)
        return sample(run, methods, progress), height, width

    def generate_transparent(self, prompts: Sequence[str], **options: Unpack[Painting]) -> Tensor:
        """Sample layers with their own transparency, ``[B, 4, H, W]``. See :func:`layered_diffusers.transparent.generate_transparent`."""
        return generate_transparent(self, prompts, **options)

    def generate_transparent_layer(self, prompt: str, *, seed: int = 0, **options: Unpack[Painting]) -> Image.Image:
        """One layer with its own transparency from words (the storybook model wants the bare object: ``a glass blue ball``), mode RGBA.

        ``options`` as :func:`layered_diffusers.transparent.generate_transparent`.
        """
        options["seeds"] = [seed]
        return to_image(self.generate_transparent([prompt], **options)[0].permute(1, 2, 0))

    def generate_together(self, prompts: Sequence[str], *, words: Mapping[str, str] | None = None, **options: Unpack[Painting]) -> Together:
        """Sample foreground, background and blend of scenes at once. See :func:`layered_diffusers.transparent.generate_together`."""
        return generate_together(self, prompts, words=words, **options)

    def generate_scene(self, prompt: str, *, foreground: str = "", background: str = "", seed: int = 0, **options: Unpack[Painting]) -> LayerDocument:
        """A scene as layers made at once: ``background``, ``foreground`` with alpha, and ``blend``, the model's picture of both, hidden.

        Args:
            prompt: of all that the scene shows.
            foreground, background: words of that layer alone, in place of ``prompt``. Neutral: empty.
            seed: of the noise.
            options: as :func:`layered_diffusers.transparent.generate_together`.
        """
        words = {name: text for name, text in (("foreground", foreground), ("background", background)) if text}
        options["seeds"] = [seed]
        return scene_document(self.generate_together([prompt], words=words, **options), prompt, words)

    def generate_layer(
        self, prompt: str, *, seed: int = 0, width: int | None = None, height: int | None = None, **options: Unpack[Sampling]
    ) -> Image.Image:
        """A picture from words alone, e.g. the background of a scene. Sizes and ``options`` as :meth:`generate`."""
        return to_image(self.generate([prompt], seeds=[seed], width=width, height=height, **options)[0].permute(1, 2, 0))

    def add_layer(
        self,
        image: Image.Image,
        prompt: str,
        mask: Image.Image | Tensor | None = None,
        *,
        seed: int = 0,
        strength: float = 1.0,
        feather: int = 8,
        size: int = 0,
        context: float = 0.5,
        blend: str = "gradient",
        transparent: bool = False,
        file: str | Path | None = None,
        decoder: str | Path | None = None,
        control: ControlNetModel | None = None,
        **options: Unpack[Sampling],
    ) -> Image.Image:
        """Add something to a picture; outside its mask every pixel stays equal to the bit.

        Args:
            image: the picture so far.
            prompt: what is added (the storybook model wants the bare object: ``a red ball``).
            mask: where; white may change. A Pillow image or ``[H, W]`` in 0..1 of the picture's size. None: found by :meth:`find_region`.
            seed: of the noise.
            strength: how far the masked part may depart from what is there, 0..1.
            feather: width of the soft border inside the mask, pixels.
            size: side at which the masked part is sampled, pixels: a small part is cut out with its surroundings and scaled up. 0: the
                whole picture is sampled.
            context: how much of the surroundings is cut out on every side, as a share of the part's longer side.
            blend: how the part joins its surroundings, one of :data:`layered_core.painting.pasting.BLENDS`.
            transparent: paint it alone, with alpha of its own, and lay it on instead of painting into the picture. See
                :func:`layered_diffusers.transparent.generate_in_place`; ``strength``, ``feather``, ``context`` and ``blend`` do nothing then.
            file, decoder: with ``transparent``, as :func:`layered_diffusers.transparent.generate_transparent`.
            control: an inpainting ControlNet (:class:`~layered_diffusers.methods.masked_control.InpaintControl`) that sees what is painted
                into; without
                effect with ``transparent``.
            options: as :meth:`generate`.

        Raises:
            LayeredError: the mask has another size than the picture, no pixel, or values that are not 0..1.
        """
        before = _pixels(image)[0]
        if transparent:
            read_files(self.model, file, decoder)  # for its errors, before anything is sampled
        if mask is None:
            mask = self.find_region(before, prompt, seed=seed, **options)
        elif isinstance(mask, Image.Image):
            mask = torch.from_numpy(_array(mask.convert("L")))
        plan = self.stage_plan(before, mask.float(), feather=0 if transparent else feather, side=size, context=context)
        if transparent:
            layer = generate_in_place(self, prompt, plan.mask, seed=seed, size=size, file=file, decoder=decoder, **options)
            return to_image(over_colour(layer, before.permute(1, 2, 0)))
        return to_image(self.repaint(plan, prompt, seed=seed, strength=strength, blend=blend, control=control, **options).permute(1, 2, 0))

    def find_region(self, before: Tensor, prompt: str, *, seed: int = 0, **options: Unpack[Sampling]) -> Tensor:
        """Where the model would put something: ``[H, W]``, 0 or 1, for a picture ``[3, H, W]``.

        A draft of the whole picture is made from ``prompt`` at strength 0.75 in half the steps; where it differs most is the place
        (:func:`layered_core.painting.stages.changed_region`), widened by 1/16 of the side.
        """
        options["steps"] = max(1, options.get("steps", 25) // 2)
        draft = self.generate([prompt], seeds=[seed], start=before[None], strength=0.75, **options)[0]
        return grow(changed_region(before, draft), max(before.shape[-2:]) // 16)

    def repaint(
        self,
        plan: Repaint,
        prompt: str,
        *,
        seed: int = 0,
        strength: float = 1.0,
        blend: str = "gradient",
        control: ControlNetModel | None = None,
        **options: Unpack[Sampling],
    ) -> Tensor:
        """Sample what a plan cuts out, each place as free as its change map says, and paste it back; ``[3, H, W]``. Options as :meth:`add_layer`."""
        start = plan.cut()[None]
        inpainting: list[Method] = [self._inpaint_input(start, plan.cut_mask())] if self.inpaints else []
        if control is not None:
            inpainting.append(InpaintControl(control, start[0], plan.cut_mask()))
        options["methods"] = [self._change_map(plan, start), *inpainting, *options.get("methods", ())]
        sampled = self.generate([prompt], seeds=[seed], start=start, strength=strength, **options)
        return plan.paste(sampled, blend)[0]

    def generate_layers(self, document: LayerDocument, **options: Unpack[Staging]) -> LayerDocument:
        """Make every layer that has no picture yet, back to front. See :func:`layered_diffusers.stages.generate_layers`."""
        return stages.generate_layers(self, document, **options)

    def replace_layer(
        self, document: LayerDocument, name: str, *, prompt: str | None = None, later: bool = False, **options: Unpack[Staging]
    ) -> LayerDocument:
        """Make one layer anew, the others stay. See :func:`layered_diffusers.stages.replace_layer`."""
        return stages.replace_layer(self, document, name, prompt=prompt, later=later, **options)

    def harmonize(
        self,
        document: LayerDocument,
        *,
        seed: int = 0,
        background: float = 1.0,
        blur: float = 0.0,
        threshold: str = "absolute",
        noise: str = "fixed",
        dilation: float = 0.0,
        softness: float = 0.0,
        **options: Unpack[Sampling],
    ) -> Image.Image:
        """Turn a document into one picture in which each layer changes as far as its ``recipe.noise`` says.

        All at 1: a picture from ``document.words`` alone. A layer at 0 keeps its pixels to the bit.

        Args:
            document: its composite is where sampling starts; its words are the prompt.
            seed: of the noise.
            background: how far what no layer covers may change, 0..1.
            blur, threshold, noise, dilation, softness: see :mod:`layered_core.noise.change_map`.
            options: as :meth:`generate`.
        """
        plan = plan_document(self.flat(document)[0], document, background=background, blur=blur, unit=self.unit)
        start = plan.cut()[None]
        change = self._change_map(plan, start, threshold, noise, dilation, softness)
        options.setdefault("negative", document.negative)
        options["methods"] = [change, *options.get("methods", ())]
        sampled = self.generate([document.words], seeds=[seed], start=start, strength=float(plan.change.max()), **options)
        return to_image(plan.paste(sampled)[0].permute(1, 2, 0))

    def render(
        self, document: LayerDocument, *, seed: int = 0, strength: float = 0.6, attention: Settings | None = None, **options: Unpack[Sampling]
    ) -> Image.Image:
        """Turn a document into one picture: composite, then SDEdit on the whole with the layers' words.

        Args:
            document: its composite is where sampling starts; its words (``document.words``) are the prompt.
            seed: of the noise.
            strength: 0 keeps the composite (through the VAE), 1 keeps only the words.
            attention: how each layer's words act where the layer is; None: they act anywhere.
            options: as :meth:`generate`.
        """
        options.setdefault("negative", document.negative)
        words = document.words
        if attention is not None:
            method = RegionalPrompts(self.model, [document], attention, negative=options["negative"])
            words, options["methods"] = method.prompts[0], [method, *options.get("methods", ())]
        pictures = self.generate([words], seeds=[seed], start=self.flat(document), strength=strength, **options)
        return to_image(pictures[0].permute(1, 2, 0))

    def flat(self, document: LayerDocument) -> Tensor:
        """The document's composite over its background (grey where there is none), ``[1, 3, H, W]``."""
        return over_colour(composite(document), document.background or GREY).permute(2, 0, 1)[None]

    def latent_mask(self, mask: Tensor) -> Tensor:
        """Mask ``[H, W]`` of pixels to cells ``[h, w]`` of the padded latents, by area; the padding repeats the edge."""
        height, width = self._padded(mask.shape[-2]), self._padded(mask.shape[-1])
        padded = functional.pad(mask[None, None], (0, width - mask.shape[-1], 0, height - mask.shape[-2]), mode="replicate")
        cells = mask_pyramid(padded, [(height // self.scale, width // self.scale)])[0][0, 0]
        return cells.to(self.model.device, self.model.unet.dtype)

    def stage_plan(self, before: Tensor, region: Tensor, *, noise: float = 1.0, feather: int = 8, side: int = 0, context: float = 0.5) -> Repaint:
        """How a stage repaints a region ``[H, W]`` of a picture ``[3, H, W]``: its soft border lies inside the region."""
        check_whole("feather", feather, 0, 1024)
        widen, soften = tighten(region, feather)
        return plan_repaint(before, region, noise=noise, widen=widen, soften=soften, context=context, side=side, unit=self.unit)

    @property
    def inpaints(self) -> bool:
        """Whether the model is an inpainting one, whose UNet takes a mask and the masked picture beside the latents."""
        return int(self.model.unet.config.in_channels) > int(self.model.vae.config.latent_channels)

    def _change_map(
        self, plan: Repaint, start: Tensor, threshold: str = "absolute", noise: str = "fixed", dilation: float = 0.0, softness: float = 0.0
    ) -> ChangeMap:
        """A plan's change map for what it cuts out, ``[1, 3, H, W]``."""
        cells = plan.cells(start.shape[-2] // self.scale, start.shape[-1] // self.scale).to(self.model.device, self.model.unet.dtype)
        return ChangeMap(self.encode(start), cells, threshold=threshold, noise=noise, dilation=dilation, softness=softness)

    def _inpaint_input(self, pictures: Tensor, mask: Tensor) -> InpaintInput:
        """What an inpainting UNet is told of pictures ``[B, 3, H, W]`` to be repainted where ``mask`` ``[H, W]`` is at least 0.5."""
        hole = (mask >= 0.5).to(pictures.dtype)
        masked = self.encode(pictures * (1 - hole) + 0.5 * hole)
        return InpaintInput(masked, (self.latent_mask(hole) > 0).to(masked.dtype))

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures ``[B, 3, H, W]`` in 0..1 to model latents ``[B, C, h, w]`` (the VAE's mean), padded by repeating the edge."""
        height, width = self._padded(pictures.shape[-2]), self._padded(pictures.shape[-1])
        padded = functional.pad(pictures, (0, width - pictures.shape[-1], 0, height - pictures.shape[-2]), mode="replicate")
        return vae.encode(self.model, padded)

    def decode(self, latents: Tensor) -> Tensor:
        """Model latents ``[B, C, h, w]`` to pictures ``[B, 3, H, W]`` float32 in 0..1 on the CPU."""
        return vae.decode(self.model, latents)

    @property
    def unit(self) -> int:
        """What a side in pixels must be a multiple of for the VAE and the UNet."""
        return self.scale * 2 ** (len(self.model.unet.config.block_out_channels) - 1)

    def _padded(self, side: int) -> int:
        """The next side that the model takes."""
        return -(-side // self.unit) * self.unit

    @torch.no_grad()
    def _words(self, prompts: list[str], negative: str, width: int, height: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode the words, of any length: context, uncond then cond, and what SDXL wants beside it."""
        contexts, pooled = encode(self.model, [negative, *prompts])
        # The negative words are the same for all pictures.
        rows = [0] * len(prompts) + list(range(1, len(contexts)))
        context = stack(contexts)[rows]
        if pooled is None:
            return context, {}
        sizes = torch.tensor([height, width, 0, 0, height, width], device=context.device, dtype=context.dtype).expand(len(rows), 6)
        return context, {"text_embeds": pooled[rows], "time_ids": sizes}


def _array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255


def _pixels(image: Image.Image) -> Tensor:
    """A Pillow image as ``[1, 3, H, W]`` in 0..1; transparent parts over grey."""
    rgba = torch.from_numpy(_array(image.convert("RGBA")))
    return over_colour(rgba, GREY).permute(2, 0, 1)[None]
