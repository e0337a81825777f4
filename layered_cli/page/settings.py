"""What the page begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from layered_core.errors import check_number, check_whole, invalid
from layered_core.formats.file_groups import check_groups
from layered_core.formats.limits import Limits
from layered_core.painting.stages import ALPHAS


@dataclass(frozen=True)
class Settings:
    """Values that the page's fields hold at first, and its limits."""

    negative: str = ""
    """Negative prompt. Neutral: empty."""
    seed: int = 0
    """Base seed, 0..2**63-1."""
    steps: int = 25
    """Sampling steps, 1..1000."""
    guidance: float | None = None
    """Classifier-free guidance, 0..50. None: as the model needs it."""
    alpha: str = "auto"
    """Where a new layer is opaque, see :class:`layered_diffusers.stages.Staging`. ``auto``: ``transparent`` if the
    model has the files for it, else ``difference``."""
    file: Path | None = None
    """With ``transparent``: LayerDiffuse's weights; None: the storybook's. The same for ``decoder``."""
    decoder: Path | None = None
    groups: str = "auto"
    """What becomes of groups in files, see :func:`layered_core.files.read_layers`."""
    memory_limit: float = 4.0
    """Most memory for the pixels of a file that is opened, GiB, 0.001..1024."""

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, 2**63 - 1)
        check_whole("steps", self.steps, 1, 1000)
        if self.guidance is not None:
            check_number("guidance", self.guidance, 0, 50)
        if self.alpha not in (allowed := ("auto", *ALPHAS)):
            raise invalid("alpha", self.alpha, ", ".join(allowed))
        check_groups(self.groups)
        check_number("memory_limit", self.memory_limit, 0.001, 1024)

    @property
    def limits(self) -> Limits:
        """The limits on files that are opened."""
        return Limits.of_memory(int(self.memory_limit * 2**30), "--memory-limit")
