"""Names of a PSD's layers, which old programs store in the encoding of the machine alone."""

from __future__ import annotations

from collections.abc import Iterable

from psd_tools.constants import Tag
from psd_tools.psd.layer_and_mask import LayerRecord

from .file_layers import MAX_TITLE, clean_text

_MAC = "mac_roman"
"""The encoding in which psd-tools decodes names; every byte is a letter of it."""

_LABELS = {"utf-8": "UTF-8", "cp932": "Shift-JIS", "gb2312": "GBK", _MAC: "MacRoman"}


def names_encoding(records: Iterable[LayerRecord], warnings: list[str]) -> str:
    """Return the encoding of the names that the file does not have in Unicode as well, and add a warning where some
    of them are not ASCII: the file does not say which encoding it is."""
    raw = [
        record.name.encode(_MAC) for record in records if Tag.UNICODE_LAYER_NAME not in record.tagged_blocks
    ]
    raw = [name for name in raw if not name.isascii() and b"\0" not in name]
    if not raw:
        return _MAC
    encoding = guess_encoding(raw)
    names = ", ".join(repr(clean_text(name.decode(encoding))) for name in raw[:3])
    warnings.append(
        f"names of layers are not stored in Unicode and are read as {_LABELS[encoding]}, as their bytes suggest: "
        f"{names}{', …' if len(raw) > 3 else ''}. If they are garbled, save the file again in the program that wrote it"
    )
    return "gb18030" if encoding == "gb2312" else encoding


def guess_encoding(names: Iterable[bytes]) -> str:
    """Return the likely encoding of names that are not ASCII, which all have the same: UTF-8 if they are that,
    Shift-JIS if all letters are Japanese and one is kana, GBK if all are Chinese and each has two high bytes,
    MacRoman otherwise."""
    names = list(names)
    if _decoded(names, "utf-8") is not None:
        return "utf-8"
    japanese = _decoded(names, "cp932")
    if (
        japanese is not None
        and all(_is_wide(c) for c in japanese)
        and any("\u3041" <= c <= "\u30fe" for c in japanese)
    ):
        # In MacRoman, capitals with accents before ASCII letters have the bytes of katakana, but not these.
        if any(
            0x9F <= b <= 0xFC and a in (0x82, 0x83)
            for name in names
            for a, b in zip(name, name[1:], strict=False)
        ):
            return "cp932"
        if sum(c > "\x7f" for c in japanese) > 2 * sum(c.isascii() and c.isalpha() for c in japanese):
            return "cp932"
    if _decoded(names, "gb2312") is not None:
        return "gb2312"
    return _MAC


def _decoded(names: Iterable[bytes], encoding: str) -> str | None:
    try:
        return "".join(name.decode(encoding) for name in names)
    except UnicodeDecodeError:
        return None


def _is_wide(letter: str) -> bool:
    """Return whether a letter is ASCII, or kana, a Chinese character, their punctuation or a full-width form."""
    return letter.isascii() or "\u3000" <= letter <= "\u9fff" or "\uff01" <= letter <= "\uff60"


def title(record: LayerRecord, encoding: str = _MAC) -> str:
    """Return the layer's name, in Unicode if the file has it, else decoded from ``encoding``."""
    name = record.tagged_blocks.get_data(Tag.UNICODE_LAYER_NAME)
    if not isinstance(name, bytes | type(None)):
        return clean_text(str(name)[:MAX_TITLE].rstrip("\0"))
    return clean_text(record.name.encode(_MAC).decode(encoding, "replace").rstrip("\0"))
