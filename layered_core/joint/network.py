"""The network that makes the layers of a scene at once: LayerDiffuse's attention sharing, with roles in place of
numbered frames.

Letters as in :mod:`layered_core.transparency.layer_diffuse_frames`: F frames, R rows, D width of a module, N positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ..transparency.layer_diffuse_frames import AttentionSharing, Base, SharingUnit
from .enhancer import PromptEnhancer
from .frames import DEPTH_WIDTH, ROLES, SceneFrames

_DEPTH_HIDDEN = 16


class JointUnit(SharingUnit):
    """The replacement of one attention module: a :class:`SharingUnit` whose low-rank changes belong to roles, with
    vectors that tell the frames apart in the attention across them.

    With one layer, and the vectors 0 as they are when new, it computes what a :class:`SharingUnit` of three frames
    does, bit for bit.

    Args:
        width, context, rank: as for :class:`SharingUnit`.
    """

    def __init__(self, width: int, context: int, rank: int) -> None:
        super().__init__(width, context, rank, len(ROLES))
        self.role = nn.Parameter(torch.zeros(len(ROLES), width))
        last = nn.Linear(_DEPTH_HIDDEN, width, bias=False)
        nn.init.zeros_(last.weight)
        self.depth = nn.Sequential(nn.Linear(DEPTH_WIDTH, _DEPTH_HIDDEN), nn.SiLU(), last)

    def run(
        self,
        h: Tensor,
        contexts: Sequence[Tensor] | None,
        base: Base,
        scene: SceneFrames,
        weight: float = 1.0,
    ) -> Tensor:
        """Compute the replaced module's output, ``[R, N, D]``.

        Args:
            h, contexts, base, weight: as in :meth:`SharingUnit.forward`, with F the frames of ``scene``.
            scene: the frames of the scenes in the batch.
        """
        scenes = len(h) // scene.frames
        absent = scene.absent(scenes)
        return self._share(
            h, contexts, base, scene.roles, weight=weight, told=self.told(scene, scenes),
            absent=None if absent is None else absent.to(h.device),
        )  # fmt: skip

    def told(self, scene: SceneFrames, scenes: int) -> Tensor:
        """Return the vectors that tell the frames apart, ``[1 or scenes, F, D]``: the role's, and for layers that of
        their depth."""
        depth = self.depth(scene.depths(scenes).to(self.role))
        depth = nn.functional.pad(depth, (0, 0, 0, scene.frames - scene.layers))
        return self.role[list(scene.roles)] + depth


class JointNetwork(nn.Module):
    """All units of a file, one for each attention of the UNet in the order of :class:`AttentionSharing`, and the
    prompt enhancer.

    Args:
        units: the units in that order.
        enhancer: None for files that have none.
        trained_layers: greatest number of layers that the network was trained to make at once.
    """

    trained_layers: Tensor

    def __init__(
        self, units: Sequence[JointUnit], enhancer: PromptEnhancer | None = None, trained_layers: int = 1
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(units)
        self.enhancer = enhancer
        self.register_buffer("trained_layers", torch.tensor(trained_layers))

    @property
    def units(self) -> list[JointUnit]:
        """The units in the order of the class's docstring."""
        return cast("list[JointUnit]", list(self.layers))

    @classmethod
    def from_sharing(cls, network: AttentionSharing) -> JointNetwork:
        """Return the network that makes with one layer, bit for bit, what ``network`` does: attention sharing of
        foreground, background and blend. It has no enhancer."""
        units = []
        for unit in network.units:
            rank = next(p for n, p in unit.named_parameters() if n.endswith("down.weight")).shape[0]
            own = JointUnit(*unit.widths, rank).to(next(unit.parameters()))
            own.load_state_dict(unit.state_dict(), strict=False)
            units.append(own)
        return cls(units).eval().requires_grad_(False)

    def texts(self, contexts: Sequence[Tensor], scene: SceneFrames, enhance: float = 1.0) -> list[Tensor]:
        """Return the encoded text that each frame reads, F times ``[R / F, T, C]``.

        Args:
            contexts: each frame's own text, of the same shape: the layers', the background's, the whole scene's.
            scene: the frames.
            enhance: how far the layers' texts are completed from the scene's, 0..1. Neutral: 0.
        """
        if self.enhancer is None or enhance == 0:
            return list(contexts)
        done = [self.enhancer(words, contexts[-1], enhance) for words in contexts[: scene.layers]]
        return [*done, *contexts[scene.layers :]]


class LayersAtOnce:
    """A network and the scenes of one run, as a host runs them: it takes the place of an :class:`AttentionSharing`.

    Args:
        network: the network.
        scene: the frames of the scenes in the batch.
        enhance: as in :meth:`JointNetwork.texts`.
    """

    encoder = None
    """No picture is given."""

    def __init__(self, network: JointNetwork, scene: SceneFrames, enhance: float = 1.0) -> None:
        self.network, self.scene, self.enhance = network, scene, enhance

    @property
    def frames(self) -> int:
        """F, the number of frames of a scene."""
        return self.scene.frames

    @property
    def units(self) -> list[Callable[..., Tensor]]:
        """A function for each attention, called like a :class:`SharingUnit`."""
        return [partial(_run, unit, self.scene) for unit in self.network.units]

    def texts(self, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return :meth:`JointNetwork.texts` of the run's scenes."""
        return self.network.texts(contexts, self.scene, self.enhance)

    def to(self, device: torch.device, dtype: torch.dtype) -> LayersAtOnce:
        """Move the network, and return this."""
        self.network.to(device, dtype)
        return self


def _run(
    unit: JointUnit, scene: SceneFrames, h: Tensor, contexts: Sequence[Tensor] | None, base: Base,
    signal: Tensor | None = None, weight: float = 1.0,
) -> Tensor:  # fmt: skip
    return unit.run(h, contexts, base, scene, weight)
