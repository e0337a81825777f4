"""Learn words from layers: what a layer shows and words cannot say becomes a word of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.document import LayerDocument
from ...layered_core.editing.selection import select_layers
from ...layered_core.errors import LayeredError, check_memory, invalid
from ...layered_core.formats.pictures import to_image
from ...layered_core.learning.learner import Learner
from ...layered_core.learning.lesson import (
    CONTEXTS,
    LearnSettings,
    Lesson,
    Subject,
    find_subjects,
    plan_lesson,
    with_embeddings,
)
from ...layered_core.learning.plot import loss_plot
from ...layered_core.learning.training import Training
from ...layered_core.learning.word_files import FORMS, LearntWord, check_free, write_word
from ...layered_core.progress import step
from ..attention.embeddings import check_words
from ..attention.transformer_families import family_of
from ..attention.unet_run import cross_attentions
from ..layers.preview import Preview
from ..layers.remarks import tell
from ..layers.socket import LAYERS, read_stack, write_stack
from ..noise.repaint_parts import vae_unit
from .copies import copies
from .training_data import CATEGORY
from .word_host import ENCODERS, WordHost, prediction_of

NAME = "Learn Words from Layers"

_DEFAULT = LearnSettings()
_LORA = "Train a LoRA from the layer instead: Training Data from Layer, Train LoRA, Save LoRA for Layer"
_PREVIEW_STEPS, _PREVIEW_CFG, _PREVIEW_SIDE = 12, 3.0, 512
_ACTIVATIONS = 3
"""Memory for a pass with gradients over that of one without, roughly; blocks keep only their inputs."""
_WHOLE = (torch.float32, torch.float16, torch.bfloat16)


class LearnWords(io.ComfyNode):
    """Learn a word from each of some layers, write its files, and put it into the layer's recipe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LearnWords",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Learn from a layer's picture what words cannot say, its very colours and pattern, as a new "
                "word (textual inversion). The word is written into ComfyUI's folder of embeddings and put "
                "into the layer's recipe. All layers are learnt in one run. For Stable Diffusion 1.x, 2.x and "
                "XL; model, clip and vae stay as they are."
            ),
            search_aliases=["textual inversion", "learn word", "train embedding", "embedding", "concept",
            "learn layer", "dreambooth"],
            inputs=[
                io.Model.Input("model", tooltip="A UNet: Stable Diffusion 1.x, 2.x or XL, not quantised. It is "
                    "not changed."),
                io.Clip.Input("clip", tooltip="The model's text encoder. It is not changed."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                LAYERS.Input("layers", tooltip="The stack. The layers that are learnt need a picture, and words "
                    "that say what it shows, such as 'a ball'."),
                io.String.Input("which", default="", tooltip="Layers to learn from: names, numbers, ranges and "
                    "patterns as in Select Layers. Empty: every visible layer with a picture and words."),
                io.String.Input("name", default="", tooltip="Name of the word: letters, digits, _ and -. For "
                    "several layers one name each, from the back to the front, with commas between. Empty: "
                    "made from the layers' names."),
                io.Combo.Input("form", options=list(FORMS), default=_DEFAULT.form, tooltip="values: an embedding, "
                    "and what is added to the keys and values of the word and its noun; nearest to the layer, "
                    "acts in this pack's Regional Prompt Attention. word: an embedding alone, which every "
                    "program reads. Neutral: none."),
                io.Int.Input("steps", default=_DEFAULT.steps, min=0, max=10_000, tooltip="Steps of training for "
                    "all layers together, 0 to 10000; it stops earlier when nothing improves. Neutral: 0, the "
                    "words keep their start."
                    " The default is more than most words need, because it stops by itself."),
                io.Int.Input("batch", default=_DEFAULT.batch, min=1, max=64, tooltip="Pictures a step, 1 to 64. "
                    "Neutral: any."),
                io.Float.Input("rate", default=_DEFAULT.rate, min=0.001, max=1.0, step=0.001, tooltip="Size of a "
                    "step, in spreads of the vectors of the words to begin with, 0.001 to 1. Neutral: none."),
                io.Int.Input("vectors", default=_DEFAULT.vectors, min=1, max=4, advanced=True, tooltip="Vectors, "
                    "and so tokens of a prompt, for each word, 1 to 4. Neutral: 1."),
                io.Combo.Input("context", options=list(CONTEXTS), default=_DEFAULT.context, tooltip="composite: "
                    "the layer on those behind it. grey: the layer alone on grey, which suits cut-outs on a rough "
                    "collage. Neutral: none."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                    tooltip="Seed of noise and texts. Neutral: any."),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace files of the same name. Off: such "
                    "a file is an error. Neutral: none."),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="The stack with the words in the layers' recipes."),
                io.String.Output(display_name="files", tooltip="The files that were written, one a line."),
                io.Image.Output(display_name="plot", tooltip="How the errors fell: each step in grey, each word "
                    "in colour."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE,
        layers: Mapping[str, Any], which: str, name: str, overwrite: bool, **values: Any,
    ) -> io.NodeOutput:  # fmt: skip
        """Check everything, train on copies, then write the files."""
        settings = LearnSettings(**values)
        check_learnable(model, clip)
        document = read_stack(layers)
        subjects = named_subjects(document, which, name)
        folder = Path(folder_paths.get_folder_paths("embeddings")[0])
        folder.mkdir(parents=True, exist_ok=True)
        for subject in subjects:
            where = f"layer {subject.layer!r}"
            check_words(clip, subject.prompt, f"{where}: ")
            check_new(clip, where, subject.word)
            check_free(where, folder, subject.word, overwrite)
        unit = vae_unit(vae)
        cells = tuple(max(1, round(side / unit)) for side in (document.height, document.width))
        size = cells[0] * unit, cells[1] * unit
        lesson = plan_lesson(document, subjects, settings, size, (cells[0], cells[1]))
        pictures = torch.cat([vae.encode(x.permute(1, 2, 0)[None]) for x in lesson.pictures])
        words, training = learn(model, clip, vae, lesson, pictures)
        files = [file for word in words for file in write_word(word, folder, overwrite)]
        folder_paths.cache_helper.clear()
        tell(cls, NAME, [_remark(x, word, training) for x, word in zip(subjects, words, strict=True)])
        plot = loss_plot(training.learner.losses, training.learner.errors, [x.word for x in subjects])
        layers = write_stack(with_embeddings(document, subjects))
        return io.NodeOutput(
            layers, "\n".join(str(file) for file in files), plot[None], ui=Preview(plot[None], cls=cls)
        )


def learn(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    lesson: Lesson,
    pictures: Tensor,
) -> tuple[list[LearntWord], Training]:
    """Train the words of a lesson on copies of MODEL and CLIP.

    Args:
        model, clip, vae: stay as they are.
        lesson: what is to be learnt.
        pictures: the lesson's pictures in the VAE's scale, ``[S, C, h, w]``.

    Raises:
        LayeredError: there is not enough memory.
    """
    with _with_gradients(), copies(model, clip) as (own_model, own_clip):
        _load(own_model, own_clip, lesson)
        shape, settings = pictures.shape[1:], lesson.settings
        size = (int(lesson.pictures.shape[-2]), int(lesson.pictures.shape[-1]))
        host = WordHost(own_model, own_clip, lesson.subjects, settings, size)
        latents = own_model.model.process_latent_in(pictures.clone()).to(own_model.load_device, torch.float32)
        half = own_model.model.get_dtype_inference() != torch.float32
        training = Training(lesson, latents, Learner(host.words, settings, half), host)
        bar = comfy.utils.ProgressBar(max(1, settings.steps))

        def preview(done: int) -> None:
            samples = host.picture(
                len(lesson.subjects) - 1, settings.seed, shape, _PREVIEW_STEPS, _PREVIEW_CFG
            )
            picture = to_image(vae.decode(samples)[0])
            bar.update_absolute(done, preview=("JPEG", picture, _PREVIEW_SIDE))
            _load(own_model, own_clip, lesson)  # what decoding may have moved away

        try:
            training.train(step, preview)
        except comfy.model_management.OOM_EXCEPTION as error:
            raise LayeredError(
                f"{NAME}: the device's memory does not suffice for {settings.batch} pictures of "
                f"{size[1]}x{size[0]} a step. Choose a smaller batch, or make the canvas smaller"
            ) from error
        return training.learnt(host.tables), training


def check_learnable(model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP) -> None:
    """Raise :class:`LayeredError` unless words can be learnt with a MODEL and a CLIP."""
    network = model.model.diffusion_model
    family = family_of(model)
    kind = family.name if family is not None else type(model.model.model_config).__name__
    if family is not None or not cross_attentions(network) or not prediction_of(model):
        raise invalid("model: to learn words with", kind, "Stable Diffusion 1.x, 2.x or XL", _LORA)
    if model.model.concat_keys:
        raise invalid(
            "model: to learn words with", f"{kind} for inpainting", "one that paints whole pictures"
        )
    names = list(clip.tokenize(""))
    if not set(names) <= set(ENCODERS):
        raise invalid(
            "clip: to learn words with", ", ".join(names), "CLIP text encoders (l, g, h)",
            f"Words mean nothing alone to encoders of sentences such as T5. {_LORA}",
        )  # fmt: skip
    for where, patcher in (("model", model), ("clip", clip.patcher)):
        strange = next((p for p in patcher.model.parameters() if not _is_plain(p)), None)
        if strange is not None:
            raise invalid(
                f"{where}: weights", f"quantised ({_kind(strange)})", "float32, float16 or bfloat16",
                f"Quantised weights have no gradients: load the model unquantised. {_LORA}",
            )  # fmt: skip


def check_new(clip: comfy.sd.CLIP, where: str, word: str) -> None:
    """Raise :class:`LayeredError` if a CLIP's vocabulary has a word already. ``where`` names the layer."""
    pieces = [p for p in next(iter(clip.tokenize(word, return_word_ids=True).values()))[0] if p[2]]
    if len(pieces) == 1:
        raise invalid(
            f"{where}: name of its word", word, "a name that is no word already", f"Try '{word}-look'"
        )


def named_subjects(document: LayerDocument, which: str, name: str) -> tuple[Subject, ...]:
    """Return the layers that are learnt, and the names of their words.

    Args:
        document: the stack.
        which: layers as in Select Layers; empty: all that can be learnt.
        name: names with commas between, back to front; empty: made from the layers' names.

    Raises:
        LayeredError: a layer cannot be learnt, or the names do not fit.
    """
    chosen = [x.name for x in select_layers(document, which)[0]] if which.strip() else None
    subjects = find_subjects(document, chosen)
    names = [part.strip() for part in name.split(",")] if name.strip() else []
    if not names:
        return subjects
    if len(names) != len(subjects):
        raise invalid(
            "name: number of names", len(names), f"{len(subjects)}, one for each of the layers "
            + ", ".join(repr(x.layer) for x in subjects), "Leave it empty for names made from the layers'",
        )  # fmt: skip
    layers = [x.layer for x in subjects]
    return find_subjects(document, layers, dict(zip(layers, names, strict=True)))


@contextmanager
def _with_gradients() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _load(model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, lesson: Lesson) -> None:
    """Bring the copies onto their devices, whole.

    Raises:
        LayeredError: the device is too small for that.
    """
    settings, shape = lesson.settings, lesson.masks.shape[-2:]
    activations = int(model.memory_required((settings.batch, 4, *shape)) * _ACTIVATIONS)
    device = model.load_device
    if not comfy.model_management.is_device_cpu(device):
        needed = model.model_size() + clip.patcher.model_size() + activations
        check_memory(
            NAME, needed, comfy.model_management.get_total_memory(device), "the device's memory",
            "Choose a smaller batch, or make the canvas smaller",
        )  # fmt: skip
    comfy.model_management.load_models_gpu(
        [model, clip.patcher], memory_required=activations, force_full_load=True
    )


def _is_plain(parameter: Tensor) -> bool:
    return parameter.dtype in _WHOLE and type(parameter) in (Tensor, torch.nn.Parameter)


def _kind(parameter: Tensor) -> str:
    plain = type(parameter) in (Tensor, torch.nn.Parameter)
    return str(parameter.dtype).removeprefix("torch.") if plain else type(parameter).__name__


def _remark(subject: Subject, word: LearntWord, training: Training) -> str:
    first = training.learner.errors[0][1] if training.learner.errors else []
    best = float(word.facts["best_error"])
    number = training.lesson.subjects.index(subject)
    fell = f", error {first[number]:.3g} to {best:.3g}" if first else ""
    return f"Layer {subject.layer!r}: learnt as {subject.word!r} in {training.learner.steps} steps{fell}"
