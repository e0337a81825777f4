"""Write the CLIP tokenizer of the shipped model: ``python -m demo.train.tokenizer``.

The byte-pair merges are OpenAI's (MIT), as packaged by ``open-clip-torch``, which must be installed.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

START, END = 49406, 49407


def byte_symbols() -> list[str]:
    """Return the 256 printable symbols that stand for bytes in CLIP's vocabulary, printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def write(folder: Path) -> None:
    """Write ``vocab.json``, ``merges.txt`` and the configuration that ``CLIPTokenizer`` reads."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "open-clip-torch is not installed. Install it: pip install --no-deps open-clip-torch"
        )
    with gzip.open(Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read()
    merges = text.split("\n")[1 : 49152 - 256 - 2 + 1]
    symbols = byte_symbols()
    entries = (
        symbols
        + [s + "</w>" for s in symbols]
        + ["".join(m.split()) for m in merges]
        + ["<|startoftext|>", "<|endoftext|>"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({e: i for i, e in enumerate(entries)}, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    config = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


if __name__ == "__main__":
    write(Path("output/train/export/tokenizer"))
