"""The zip archive of an OpenRaster file: entries are checked before they are unpacked."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import IO, BinaryIO

from ..errors import LayeredError, invalid
from ..progress import read_all
from .limits import Budget, Limits

FOLDER = "layered-diffusion/"
"""Folder of this project's entries."""
PNG = b"\x89PNG\r\n\x1a\n"
"""The first bytes of a PNG file."""

_MAX_PNG_DATA = 2**25
"""Greatest size of what a PNG file holds beside pixels: profile, texts, metadata."""
_MAX_DIRECTORY_BYTES = 2**22
"""Greatest size of the archive's list of entries, about 40,000 of them."""


def check_directory(file: BinaryIO) -> None:
    """Refuse an archive with a list of entries so long that it would fill the memory, before the list is
    read."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 2**16 - 100))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise LayeredError("the file is not a zip archive, or it is cut short")
    directory = int.from_bytes(tail[end + 12 : end + 16], "little")
    if directory > _MAX_DIRECTORY_BYTES or b"PK\x06\x07" in tail[max(0, end - 20) : end]:
        raise invalid(
            "size of the archive's list of entries",
            f"{directory:,} bytes",
            f"at most {_MAX_DIRECTORY_BYTES:,}, not in zip64",
        )
    file.seek(0)


class Archive:
    """Reads entries of an archive.

    Raises:
        LayeredError: two entries have one name, or a name leads out of the archive.
    """

    def __init__(self, archive: zipfile.ZipFile, limits: Limits) -> None:
        self.archive = archive
        self.limits = limits
        self.budget = Budget(limits)
        self.entries: dict[str, zipfile.ZipInfo] = {}
        self.spelled: dict[str, list[str]] = {}
        for entry in archive.infolist():
            name = entry.filename
            # Nothing is unpacked to disk, so that a name with a drive or a leading slash, as pyora writes, is harmless.
            if ".." in _plain(name).split("/"):
                raise invalid("name of an entry", name, "a path inside the archive")
            if name in self.entries:
                raise invalid("name of an entry", name, "names that occur once")
            self.entries[name] = entry
            self.spelled.setdefault(_plain(name), []).append(name)

    def _entry(self, name: str) -> zipfile.ZipInfo | None:
        """Return an entry by its name, or else the only one whose name differs from it in a leading slash, ``./`` or
        the kind of slashes; None if there is none."""
        spelled = self.spelled.get(_plain(name), ())
        return self.entries.get(name) or (self.entries[spelled[0]] if len(spelled) == 1 else None)

    def _begin(self, entry: zipfile.ZipInfo) -> bytes:
        """Return the first bytes of an entry: of a PNG file the signature and the header with its size."""
        with self._open(entry) as file:
            return file.read(24)

    def _png_size(self, entry: zipfile.ZipInfo) -> tuple[int, int] | None:
        """Return the width and height that an entry states; None if it is not a PNG file."""
        begin = self._begin(entry)
        if len(begin) < 24 or not begin.startswith(PNG) or begin[12:16] != b"IHDR":
            return None
        width, height = struct.unpack(">II", begin[16:])
        return width, height

    def _png(self, name: str) -> bytes:
        """Return an entry that is a PNG file; it is not read if it is another file or larger than its pixels can be.

        Raises:
            LayeredError: as :meth:`_bytes`, or the entry is no PNG file, or its pixels exceed the limits.
        """
        entry = self._entry(name)
        size = None if entry is None else self._png_size(entry)
        if entry is not None and size is None:
            raise LayeredError(
                f"picture {name!r} cannot be read: it is damaged, or not a PNG file. Save it again as PNG"
            )
        if size is not None:
            self.budget.check(f"picture {Path(name).name}", *size)
        width, height = size or (0, 0)
        return self._bytes(name, (8 * width + 1) * height + _MAX_PNG_DATA)

    def _blob(self, key: str, count: int) -> bytes | None:
        entry = self._entry(FOLDER + key)
        return self._bytes(FOLDER + key, count) if entry is not None and entry.file_size == count else None

    def _bytes(self, name: str, most: int) -> bytes:
        """Return the content of an entry, at most ``most`` bytes, whatever size the archive states.

        Raises:
            LayeredError: the entry is missing, encrypted, of an unusual compression, or too large.
        """
        entry = self._entry(name)
        if entry is None:
            found = ", ".join(sorted(self.entries)[:5]) or "nothing"
            raise LayeredError(
                f"the archive has no entry {name!r}, only {found[:80]}. The file is not OpenRaster, or it is "
                f"damaged"
            )
        most = min(most, self.limits.max_file_bytes)
        if entry.file_size > most:
            raise invalid(f"size of entry {name}", f"{entry.file_size:,} bytes", f"at most {most:,}")
        with self._open(entry) as file:
            data = read_all(file, most + 1)
        if len(data) > most:
            raise LayeredError(
                f"entry {name!r} is larger than the archive says; allowed: at most {most:,} bytes"
            )
        return data

    def _open(self, entry: zipfile.ZipInfo) -> IO[bytes]:
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise LayeredError(
                f"entry {entry.filename!r} is encrypted or of an unusual compression; allowed: stored or deflated. "
                f"Save the file anew"
            )
        return self.archive.open(entry)


def _plain(name: str) -> str:
    """Return the name of an entry without leading slashes and ``./``, with forward slashes."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
