"""How diffusers calls each family of transformers, a row each."""

from __future__ import annotations

from dataclasses import dataclass

from layered_core.attention.families import FAMILIES, Family
from layered_diffusers.models.loading import TRANSFORMERS


@dataclass(frozen=True)
class Host:
    """One of diffusers' pipelines. Facts are of diffusers 0.42."""

    key: str
    """Key of the family in :data:`~layered_core.attention.families.FAMILIES`."""
    passes: tuple[tuple[str, ...], ...]
    """Calls of the transformer at every guided step: the halves of the batch in each, in order."""
    packed: bool = False
    """Whether the pipeline's latents are rows of patches, ``[B, h/2 w/2, 4 C]``."""
    picture_first: bool = False
    """Whether the picture's tokens stand before the text's in the joint attention."""
    listed: bool = False
    """Whether the transformer takes lists of texts and pictures instead of batches."""
    masks: bool = False
    """Whether the pipeline itself closes the padding of prompts of different length."""
    turned: bool = False
    """Whether the transformer predicts the picture minus the noise, which the pipeline turns round."""

    @property
    def family(self) -> Family:
        """The family's own facts."""
        return FAMILIES[self.key]


APART, NEGATIVE_FIRST, POSITIVE_FIRST = (
    (("cond",), ("uncond",)),
    (("uncond", "cond"),),
    (("cond", "uncond"),),
)

HOSTS = {
    "flux": Host("flux", APART, packed=True),
    "sd3": Host("sd3", NEGATIVE_FIRST, picture_first=True),
    "qwen": Host("qwen", APART, packed=True, masks=True),
    "zimage": Host("zimage", POSITIVE_FIRST, picture_first=True, listed=True, masks=True, turned=True),
}


def host_of(model: object) -> Host:
    """Return the row of a loaded pipeline."""
    return HOSTS[TRANSFORMERS[type(model).__name__]]
