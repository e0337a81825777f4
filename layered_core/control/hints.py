"""Hint pictures for ControlNets, drawn from layers.

Canny edges and segmentation colours are computed here. The other kinds need controlnet_aux, which is imported
only when one of them is used.
"""

from __future__ import annotations

import colorsys
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.compositing import premultiplied, straight
from ..canvas.masks import document_masks
from ..canvas.resizing import resized
from ..document import Layer, LayerDocument
from ..errors import LayeredError, invalid
from ..formats.pictures import to_image
from ..progress import pause, row_bands, steps

Preprocessor = Callable[[Tensor], Tensor]
"""A function from a picture ``[3, H, W]`` in 0..1 to a hint ``[3, H, W]`` in 0..1."""

DETECTORS = {
    "scribble": ("HEDdetector", "ControlNetHED.pth", {"scribble": True}),
    "lineart": ("LineartDetector", "sk_model.pth", {}),
    "depth": ("MidasDetector", "dpt_hybrid-midas-501f0c75.pt", {}),
    "normal": ("NormalBaeDetector", "scannet.pt", {}),
    "pose": ("OpenposeDetector", "body_pose_model.pth", {}),
}
"""Hint to controlnet_aux's class, the checkpoint file that it needs, and the options of its call."""


def canny(picture: Tensor, low: float = 100, high: float = 200) -> Tensor:
    """Detect edges (Canny, PAMI 1986) as OpenCV's ``Canny`` does: Sobel 3x3, L1 norm, no blur.

    Args:
        picture: ``[3, H, W]`` in 0..1.
        low, high: thresholds of the gradient, 0..2040 (8-bit levels); edges above ``low`` are kept if they
            are connected to edges above ``high``.

    Returns:
        bool ``[H, W]``.
    """
    height, width = picture.shape[-2:]
    strong: Tensor
    weak: Tensor
    strong, weak = torch.empty(2, height, width, dtype=torch.bool, device=picture.device)
    for rows in steps(row_bands(height, width, 3)):
        # Two rows more on each side, as a ridge is found from gradients and a gradient from greys.
        around = slice(max(0, rows.start - 2), rows.stop + 2)
        inner = slice(rows.start - around.start, rows.stop - around.start)
        size, ridge = _ridges(picture[:, around])
        strong[rows], weak[rows] = ((ridge & (size > least))[inner] for least in (high, low))
    while True:
        pause()
        grown = weak & (functional.max_pool2d(strong[None, None].float(), 3, 1, 1)[0, 0] > 0)
        if torch.equal(grown, strong):
            return strong
        strong = grown | strong


def _ridges(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Return the size of the gradient ``[H, W]`` of a picture ``[3, H, W]``, and whether it is a ridge."""
    red, green, blue = (picture.float().clamp(0, 1) * 255).round()
    grey = (0.299 * red + 0.587 * green + 0.114 * blue).round()
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    padded = functional.pad(grey[None, None], (1, 1, 1, 1), mode="replicate")
    gx, gy = functional.conv2d(padded, torch.stack([kernel, kernel.T])[:, None].to(grey))[0]
    size = gx.abs() + gy.abs()
    return size, _is_ridge(size, gx, gy)


def _is_ridge(size: Tensor, gx: Tensor, gy: Tensor) -> Tensor:
    """Return where the gradient ``[H, W]`` is the greatest across its edge."""
    around = functional.pad(size, (1, 1, 1, 1))
    height, width = size.shape

    def shifted(dy: int, dx: int) -> Tensor:
        return around[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    steep = gy.abs() > gx.abs() * 2.414213562
    flat = gy.abs() < gx.abs() * 0.414213562
    falling = (gx * gy) > 0
    across = (size > shifted(0, -1)) & (size >= shifted(0, 1))
    along = (size > shifted(-1, 0)) & (size >= shifted(1, 0))
    down = (size > shifted(-1, -1)) & (size > shifted(1, 1))
    up = (size > shifted(-1, 1)) & (size > shifted(1, -1))
    return torch.where(flat, across, torch.where(steep, along, torch.where(falling, down, up)))


def segment_colour(index: int) -> tuple[float, float, float]:
    """Return the colour of layer ``index`` in a segmentation hint, RGB 0..1: hues a golden ratio apart."""
    return colorsys.hsv_to_rgb(index * 0.618033988749895 % 1, 0.75, 0.95)


def document_hint(
    document: LayerDocument, *, outline: bool = False, preprocess: Callable[[str], Preprocessor] | None = None
) -> Tensor:
    """Draw the hints of all layers on one canvas, each as its recipe says and only where the layer is
    visible.

    Args:
        document: layers whose recipe has a control hint are drawn; others stay black.
        outline: whether to draw a layer's silhouette as an edge too; otherwise the border of a cut-out is no
            edge.
        preprocess: returns the preprocessor of a kind in ``DETECTORS``; None if only ``picture``, ``canny``
            and ``segmentation`` are available.

    Returns:
        ``[3, H, W]`` in 0..1.

    Raises:
        LayeredError: a layer's hint needs a picture and the layer has none, or the preprocessor is missing.
    """
    shown, _ = document_masks(document)
    out = torch.zeros(3, document.height, document.width)
    for index, layer in steps(list(enumerate(document))):
        if layer.visible and layer.recipe.control.hint != "none":
            out += _layer_hint(layer, index, document, outline, preprocess) * shown[index]
    return out.clamp_(0, 1)


def _layer_hint(
    layer: Layer,
    index: int,
    document: LayerDocument,
    outline: bool,
    preprocess: Callable[[str], Preprocessor] | None,
) -> Tensor:
    kind = layer.recipe.control.hint
    if kind == "segmentation":
        return torch.tensor(segment_colour(index))[:, None, None].expand(3, document.height, document.width)
    if layer.image is None:
        raise LayeredError(
            f"layer {layer.name!r}: control hint {kind!r} needs a picture, and the layer has none. Load a "
            f"picture, or use the hint segmentation or none"
        )
    pixels = premultiplied(layer, document.width, document.height)
    pause()
    pixels = straight(pixels.div_(max(layer.opacity, 1e-6))).permute(2, 0, 1)
    alpha = pixels[3]
    picture = spread(pixels[:3], alpha)
    if kind == "picture":
        return picture
    if kind != "canny":
        if preprocess is None:
            raise invalid(
                f"layer {layer.name!r}: control hint",
                kind,
                "picture, canny, segmentation",
                "This host offers no other preprocessors",
            )
        return preprocess(kind)(picture)
    edges = canny(picture) & (alpha > 0.5)
    if outline:
        edges |= canny(alpha.expand(3, -1, -1)) & (functional.max_pool2d(alpha[None], 3, 1, 1)[0] > 0.5)
    return edges.float().expand(3, -1, -1)


def spread(picture: Tensor, alpha: Tensor) -> Tensor:
    """Extend colours ``[3, H, W]`` into the transparent pixels of ``alpha`` ``[H, W]``, so that the border of
    a cut-out gives no edge.

    Each level of an image pyramid fills the holes of the next finer one (push-pull, Gortler et al. 1996).
    """
    weight = (alpha > 0.5).float()
    pause()
    return _fill_holes(picture * weight, weight[None])


def _fill_holes(colour: Tensor, weight: Tensor) -> Tensor:
    """Fill the pixels of ``colour`` ``[3, H, W]`` with weight 0. ``colour`` is premultiplied by ``weight``
    ``[1, H, W]``, which is 0 or more."""
    pause()
    if min(weight.shape[-2:]) == 1 or bool((weight > 0).all()):
        return colour / weight.clamp_min(1e-6)
    small = torch.cat([functional.avg_pool2d(plane[None], 2, ceil_mode=True) for plane in (*colour, *weight)])
    pause()
    coarse = functional.interpolate(
        _fill_holes(small[:3], small[3:])[None], weight.shape[-2:], mode="bilinear"
    )[0]
    pause()
    return torch.where(weight > 0, colour / weight.clamp_min(1e-6), coarse)


def load_preprocessor(kind: str, folder: Path, device: torch.device | str = "cpu") -> Preprocessor:
    """Load one of controlnet_aux's detectors from the checkpoints in ``folder``; nothing is downloaded, and code in a
    checkpoint does not run.

    Raises:
        LayeredError: controlnet_aux is not installed, or the checkpoint is missing, broken or holds more than
            weights; the error says what is needed and where.
    """
    if kind not in DETECTORS:
        raise invalid("control hint", kind, ", ".join(DETECTORS))
    name, file, options = DETECTORS[kind]
    try:
        module = importlib.import_module("controlnet_aux")
    except ImportError:
        raise LayeredError(
            f"control hint {kind!r} needs the package controlnet_aux, which is not installed: pip install "
            f"controlnet-aux. Canny works without it"
        ) from None
    if not (folder / file).is_file():
        raise LayeredError(
            f"control hint {kind!r} needs the checkpoint {file} of lllyasviel/Annotators (Hugging Face): put "
            f"it into {folder}"
        )
    try:
        with _weights_only():
            detector = getattr(module, name).from_pretrained(str(folder))
    except (UnpicklingError, EOFError, RuntimeError, OSError) as error:
        told = (str(error).splitlines() or [""])[0]
        raise LayeredError(
            f"control hint {kind!r}: the checkpoint {file} in {folder} cannot be read as weights: {told}. Get it from "
            f"lllyasviel/Annotators (Hugging Face)"
        ) from None
    if hasattr(detector, "to"):
        detector = detector.to(device)

    def preprocess(picture: Tensor) -> Tensor:
        side = min(picture.shape[-2:])
        drawn = detector(
            to_image(picture.permute(1, 2, 0)),
            detect_resolution=side,
            image_resolution=side,
            output_type="np",
            **options,
        )
        hint = torch.from_numpy(drawn.copy()).float().permute(2, 0, 1) / 255
        return resized(hint, *picture.shape[-2:])

    return preprocess


@contextmanager
def _weights_only() -> Iterator[None]:
    """Let ``torch.load`` read nothing but tensors, whatever its caller asks for: these checkpoints are pickles, which
    could run code."""
    force = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ.get(name) for name in force}
    os.environ.update(force)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
