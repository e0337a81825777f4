"""Copy the exported weights into ``demo/model``: ``python -m demo.train.ship [FOLDER]``."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from demo.world.places import MODEL

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.31.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}


def ship(export: Path) -> int:
    """Copy every part in ``export``; return the size of all shipped weights in bytes."""
    for part in sorted(p for p in export.iterdir() if p.is_dir()):
        shutil.copytree(part, MODEL / part.name, dirs_exist_ok=True, copy_function=shutil.copyfile)
    (MODEL / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    return sum(f.stat().st_size for f in MODEL.rglob("*.safetensors"))


if __name__ == "__main__":
    folder = Path(*sys.argv[1:2] or ["output/train/export"])
    print(f"{ship(folder) / 1e6:.2f} MB of weights in {MODEL}")  # noqa: T201
