"""The pipeline: makes pictures from prompts and from layer documents, with the storybook model or any Stable
Diffusion model on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo.world.places import TRANSFORMER
from layered_core.attention.regional_plan import Settings
from layered_core.canvas.compositing import GREY, over_colour
from layered_core.document import LayerDocument
from layered_core.errors import check_number
from layered_core.formats.pictures import to_image
from layered_core.painting.repaint import Repaint, plan_document
from layered_core.rendering.rendering_plan import Rendering
from layered_diffusers import stages
from layered_diffusers.editing import decompose, edit_layers, sample_layers
from layered_diffusers.generator import Generator
from layered_diffusers.learning.learn import learn_words
from layered_diffusers.models.adapters import embedded
from layered_diffusers.models.loading import (
    STORYBOOK,
    find_model,
    holds_transformer,
    is_transformer,
    load_model,
)
from layered_diffusers.sampling import Method, Sampling, WordedMethod
from layered_diffusers.together import Scenes, ScenesMade, SceneWords, generate_scenes, scene_document
from layered_diffusers.transformer.generator import TransformerGenerator
from layered_diffusers.transparent import (
    generate_in_place,
    generate_transparent,
    read_files,
)
from layered_diffusers.transplant import transplant_scenes

if TYPE_CHECKING:
    from diffusers import ControlNetModel
    from typing_extensions import Unpack

    from layered_core.joint.editing import Edit, Free
    from layered_diffusers.editing import Editing
    from layered_diffusers.learning.learn import Learning
    from layered_diffusers.stages import Staging
    from layered_diffusers.transparent import Painting
    from layered_diffusers.transplant import Transplanting

PLACES = Settings(global_weight=0.5, guidance=3.0, growth=0.03)
"""How a layer's words act in its place when a document is rendered, unless other settings are given. The whole
prompt keeps half of the attention, because a layer's picture says what is there too. The guidance and the growth
make sure that a layer of words is seen. They act while the layout is forming: in one of
the ten steps of a picture at strength 0.4."""


class LayeredDiffusionPipeline(Generator):
    """Layer-wise generation with one model: Stable Diffusion, or a transformer.

    Load it with :meth:`from_pretrained`, then call :meth:`generate_layer`, :meth:`add_layer` or
    :meth:`render`. Pictures are Pillow images. Masks are 1 (white) where the picture may change.
    """

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
            path_or_id: a folder in the diffusers layout (SD 1.x, 2.x, XL, or one of
                :data:`layered_diffusers.models.loading.TRANSFORMERS`), an id in the local Hugging Face cache,
                None for the storybook, or ``demo-transformer`` for the storybook transformer.
            device: None for the GPU if there is one.
            dtype: None for float16 on a GPU (transformers: bfloat16, the storybook: float32), float32
                elsewhere.
            sampler: one of :data:`layered_diffusers.models.loading.SAMPLERS`; None for the model's own. Any
                other scheduler of diffusers can be set as ``pipeline.model.scheduler``.

        Raises:
            LayeredError: the model is missing, broken or of another family, or there is no such sampler.
                Nothing is downloaded.
        """
        device = (
            torch.device(device)
            if device is not None
            else torch.device("cuda" if torch.cuda.is_available() else "cpu")
        )
        half = torch.bfloat16 if holds_transformer(path_or_id) else torch.float16
        shipped = find_model(path_or_id) in (STORYBOOK, TRANSFORMER)
        dtype = dtype or (half if device.type == "cuda" and not shipped else torch.float32)
        model = load_model(path_or_id, device, dtype, sampler)
        return TransformerPipeline(model) if is_transformer(model) else cls(model)

    def generate_transparent(self, prompts: Sequence[str], **options: Unpack[Painting]) -> Tensor:
        """Sample layers with their own transparency, ``[B, 4, H, W]``. See
        :func:`layered_diffusers.transparent.generate_transparent`."""
        return generate_transparent(self, prompts, **options)

    def generate_transparent_layer(
        self, prompt: str, *, seed: int = 0, **options: Unpack[Painting]
    ) -> Image.Image:
        """Make one layer with its own transparency from a prompt, mode RGBA. The storybook model expects the
        object alone: ``a glass blue ball``.

        ``options`` are those of :func:`layered_diffusers.transparent.generate_transparent`.
        """
        options["seeds"] = [seed]
        return to_image(self.generate_transparent([prompt], **options)[0].permute(1, 2, 0))

    def generate_scenes(self, scenes: Sequence[SceneWords], **options: Unpack[Scenes]) -> ScenesMade:
        """Sample the layers, the backgrounds and the blends of scenes at once. See
        :func:`layered_diffusers.together.generate_scenes`."""
        return generate_scenes(self, scenes, **options)

    def generate_scene(
        self,
        prompt: str,
        layers: Sequence[str] = (),
        *,
        background: str = "",
        seed: int = 0,
        **options: Unpack[Scenes],
    ) -> LayerDocument:
        """Make the layers of a scene at once: ``background``, the layers with alpha back to front, and ``blend``, the
        model's picture of all, which is hidden.

        Args:
            prompt: describes the whole scene.
            layers: prompts of 1 to 4 layers, each alone, back to front. Neutral: empty, then one layer called
                ``foreground`` is made from ``prompt``.
            background: prompt of the background alone, in place of ``prompt``. Neutral: empty.
            seed: seed of the noise.
            options: those of :func:`layered_diffusers.together.generate_scenes`.
        """
        scene = SceneWords(prompt, tuple(layers), background)
        options["seeds"] = [seed]
        return scene_document(scene, self.generate_scenes([scene], **options))

    def transplant_scenes(self, scenes: Sequence[SceneWords], **options: Unpack[Transplanting]) -> ScenesMade:
        """Make the layers of scenes one by one, and the pictures of all around them. See
        :func:`layered_diffusers.transplant.transplant_scenes`."""
        return transplant_scenes(self, scenes, **options)

    def transplant_scene(
        self,
        prompt: str,
        layers: Sequence[str] = (),
        *,
        background: str = "",
        seed: int = 0,
        **options: Unpack[Transplanting],
    ) -> LayerDocument:
        """Make the layers of a scene one by one, and the picture of all around them: a document as that of
        :meth:`generate_scene`, without a trained file, with any model.

        The arguments are those of :meth:`generate_scene`; ``options`` those of
        :func:`layered_diffusers.transplant.transplant_scenes`.
        """
        scene = SceneWords(prompt, tuple(layers), background)
        options["seeds"] = [seed]
        return scene_document(scene, self.transplant_scenes([scene], **options))

    def edit_layers(
        self, document: LayerDocument, edits: Mapping[str, str | Edit], **options: Unpack[Editing]
    ) -> LayerDocument:
        """Give layers other words and make them anew among the others, which come back bit for bit. See
        :func:`layered_diffusers.editing.edit_layers`."""
        return edit_layers(self, document, edits, **options)

    def sample_layers(
        self, document: LayerDocument, free: Mapping[str, Free], **options: Unpack[Editing]
    ) -> LayerDocument:
        """Make some layers of a document anew, and only as far as ``free`` says. See
        :func:`layered_diffusers.editing.sample_layers`."""
        return sample_layers(self, document, free, **options)

    def decompose(
        self,
        picture: Image.Image,
        layers: Sequence[str],
        *,
        background: str = "",
        prompt: str = "",
        **options: Unpack[Editing],
    ) -> LayerDocument:
        """Take a picture apart into a background and layers with alpha that show ``layers``. See
        :func:`layered_diffusers.editing.decompose`."""
        pixels = torch.from_numpy(_array(picture.convert("RGBA")))
        return decompose(self, pixels, layers, background=background, prompt=prompt, **options)

    def generate_layer(
        self,
        prompt: str,
        *,
        seed: int = 0,
        width: int | None = None,
        height: int | None = None,
        **options: Unpack[Sampling],
    ) -> Image.Image:
        """Make a picture from a prompt alone, e.g. the background of a scene. Sizes and ``options`` are those
        of :meth:`generate`."""
        return to_image(
            self.generate([prompt], seeds=[seed], width=width, height=height, **options)[0].permute(1, 2, 0)
        )

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
        """Add something to a picture. Outside the mask every pixel stays exactly as it is.

        Args:
            image: the picture so far.
            prompt: describes what is added. The storybook model expects the object alone: ``a red ball``.
            mask: white where the picture may change; a Pillow image or ``[H, W]`` in 0..1 of the picture's
                size. None lets :meth:`find_region` choose the place.
            seed: seed of the noise.
            strength: how far the masked part may depart from the picture, 0..1.
            feather: width of the soft border inside the mask, pixels.
            size: side at which the masked part is sampled, pixels: a small part is cut out with its
                surroundings and scaled up. 0 samples the whole picture.
            context: how much of the surroundings is cut out on every side, as a share of the part's longer
                side.
            blend: how the part joins its surroundings, one of :data:`layered_core.painting.pasting.BLENDS`.
            transparent: make the new thing alone, with alpha of its own, and composite it over the picture
                instead of painting into it (:func:`layered_diffusers.transparent.generate_in_place`);
                ``strength``, ``feather``, ``context`` and ``blend`` then have no effect.
            file, decoder: with ``transparent``, as in
                :func:`layered_diffusers.transparent.generate_transparent`.
            control: an inpainting ControlNet
                (:class:`~layered_diffusers.methods.masked_control.InpaintControl`) that gets the picture with
                a hole at the mask; it has no effect with ``transparent``.
            options: those of :meth:`generate`.

        Raises:
            LayeredError: the mask has another size than the picture, is empty, or has values outside 0..1.
        """
        before = _pixels(image)[0]
        if transparent:
            read_files(self.model, file, decoder)  # raises its errors before anything is sampled
        if mask is None:
            mask = self.find_region(before, prompt, seed=seed, **options)
        elif isinstance(mask, Image.Image):
            mask = torch.from_numpy(_array(mask.convert("L")))
        plan = self.stage_plan(
            before, mask.float(), feather=0 if transparent else feather, side=size, context=context
        )
        if transparent:
            layer = generate_in_place(
                self, prompt, plan.mask, seed=seed, size=size, file=file, decoder=decoder, **options
            )
            return to_image(over_colour(layer, before.permute(1, 2, 0)))
        return to_image(
            self.repaint(
                plan, prompt, seed=seed, strength=strength, blend=blend, control=control, **options
            ).permute(1, 2, 0)
        )

    def generate_layers(self, document: LayerDocument, **options: Unpack[Staging]) -> LayerDocument:
        """Generate every layer that has no picture yet, back to front. See
        :func:`layered_diffusers.stages.generate_layers`."""
        return stages.generate_layers(self, document, **options)

    def replace_layer(
        self,
        document: LayerDocument,
        name: str,
        *,
        prompt: str | None = None,
        later: bool = False,
        **options: Unpack[Staging],
    ) -> LayerDocument:
        """Generate one layer again and keep the others. See
        :func:`layered_diffusers.stages.replace_layer`."""
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
        attention: Settings | None = PLACES,
        adapters: Path | None = None,
        rendering: Rendering | None = None,
        **options: Unpack[Sampling],
    ) -> Image.Image:
        """Turn a document into one picture in which each layer changes as far as its ``recipe.noise`` says.

        With 1 for every layer the result is a picture from words alone. A layer with 0 keeps its pixels
        exactly.

        Args:
            document: sampling starts from its composite; ``document.words`` is the prompt.
            seed: seed of the noise.
            background: how far the places that no layer covers may change, 0..1.
            blur, threshold, noise, dilation, softness: see :mod:`layered_core.noise.change_map`.
            attention, adapters, rendering: as in :meth:`render`.
            options: those of :meth:`generate`.
        """
        plan = plan_document(
            self.flat(document)[0], document, background=background, blur=blur, unit=self.unit
        )
        change = self._change_map(plan, plan.cut()[None], threshold, noise, dilation, softness)
        return self._redraw(document, plan, [change], seed, attention, adapters, rendering, options)

    def render(
        self,
        document: LayerDocument,
        *,
        seed: int = 0,
        strength: float = 0.4,
        attention: Settings | None = PLACES,
        adapters: Path | None = None,
        rendering: Rendering | None = None,
        **options: Unpack[Sampling],
    ) -> Image.Image:
        """Turn a document into one picture: SDEdit on its composite, with each layer's words in its place.

        Where the document has no picture, that is where a layer with words alone is seen, or no layer and no
        background colour, the model paints from noise, whatever the strength is.

        Args:
            document: sampling starts from its composite; ``document.words`` is the prompt.
            seed: seed of the noise.
            strength: how far the layers' pictures may change: 0 keeps every pixel of them, 1 keeps nothing.
            attention: how each layer's words are bound to the place of the layer; None: the words act
                everywhere.
            adapters: folder of the LoRAs and embeddings that the layers' recipes name. They act only in this
                picture, with ``attention`` or ``rendering``: a layer's LoRAs where the layer is seen and on its own
                words.
            rendering: leads each layer to its place while the picture is forming; ``attention`` acts in the
                rest of the run. None: not at all.
            options: those of :meth:`generate`.

        Raises:
            LayeredError: a value is out of range, or a layer's embedding is missing; the text names it. With
                ``rendering``, see also :func:`~layered_core.rendering.rendering_plan.plan_rendering`.
        """
        check_number("strength", strength, 0, 1)
        plan = plan_document(
            self.flat(document)[0],
            document.with_noise(strength),
            background=1.0 if document.background is None else strength,
            unit=self.unit,
        )
        least, most = (float(x) for x in plan.change.aminmax())
        changes = [] if least == most else [self._change_map(plan, plan.cut()[None])]
        return self._redraw(document, plan, changes, seed, attention, adapters, rendering, options)

    def learn_words(
        self, document: LayerDocument, folder: Path, **options: Unpack[Learning]
    ) -> LayerDocument:
        """Learn a word from each of some layers, write its files into ``folder``, and return the document with the
        words in the layers' recipes. See :func:`layered_diffusers.learning.learn.learn_words`."""
        return learn_words(self, document, folder, **options)

    def _redraw(
        self,
        document: LayerDocument,
        plan: Repaint,
        changes: Sequence[Method],
        seed: int,
        attention: Settings | None,
        adapters: Path | None,
        rendering: Rendering | None,
        options: Sampling,
    ) -> Image.Image:
        """Sample the whole picture of ``plan``, held by ``changes`` where it may change less than elsewhere, and
        paste it. The other arguments are those of :meth:`render`."""
        options.setdefault("negative", document.negative)
        if attention is PLACES and not self.is_guided(options.get("guidance")):
            attention = replace(PLACES, guidance=1.0)
        method: WordedMethod | None = None
        leads = rendering is not None and rendering.share > 0
        acts = leads or (attention is not None and attention.strength > 0)
        with embedded(self.model, [document] if acts else [], adapters):
            if attention is not None:
                method = self.regional_prompts(
                    [document], attention, negative=options["negative"], adapters=adapters
                )
            if leads:
                method = self.layered_rendering(
                    [document], rendering, negative=options["negative"], then=method, adapters=adapters
                )
            words, places = (document.words, []) if method is None else (method.prompts[0], [method])
            options["methods"] = [*changes, *places, *options.get("methods", ())]
            sampled = self.generate(
                [words], seeds=[seed], start=plan.cut()[None], strength=float(plan.change.max()), **options
            )
        return to_image(plan.paste(sampled)[0].permute(1, 2, 0))


class TransformerPipeline(TransformerGenerator, LayeredDiffusionPipeline):
    """The pipeline with a transformer. LayerDiffuse, ControlNets and textual-inversion embeddings need a UNet;
    asking for them is an error."""


def _array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255


def _pixels(image: Image.Image) -> Tensor:
    """Return a Pillow image as ``[1, 3, H, W]`` in 0..1, its transparent parts over grey."""
    rgba = torch.from_numpy(_array(image.convert("RGBA")))
    return over_colour(rgba, GREY).permute(2, 0, 1)[None]
