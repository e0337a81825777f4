"""ICC profiles for tests, built by hand from primaries, curves and tables."""

import io
import struct

import numpy as np
from PIL import Image, ImageCms

from layered_core.formats.icc_profiles import D65, SRGB, primaries_matrix

WIDE = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
"""The primaries of Display P3."""
SRGB_PARAMETERS = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def fixed(*values):
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def gamma(value):
    """A curve of version 2: one gamma, 1 without a number."""
    if value == 1:
        return b"curv" + bytes(8)
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256)) + bytes(2)


def sampled(values):
    numbers = [round(v * 65535) for v in values]
    return b"curv" + bytes(4) + struct.pack(f">I{len(numbers)}H", len(numbers), *numbers)


def parametric(kind, *values):
    return b"para" + bytes(4) + struct.pack(">Hxx", kind) + fixed(*values)


def profile(space, tags, kind=b"mntr", connection=b"XYZ ", name="made for a test"):
    """Return the bytes of a profile of version 2 with the tags and a description."""
    words = name.encode("ascii") + b"\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(words)) + words + bytes(78)
    white = b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)
    parts = {b"desc": description, b"wtpt": white, b"cprt": b"text" + bytes(5), **tags}
    start, table, body = 132 + 12 * len(parts), b"", b""
    for tag, part in parts.items():
        table += struct.pack(">4sII", tag, start + len(body), len(part))
        body += part + bytes(-len(part) % 4)
    header = struct.pack(
        ">I4xI4s4s4s6H4s28x12s48x",
        start + len(body), 0x02400000, kind, space, connection, 2000, 1, 1, 0, 0, 0, b"acsp",
        fixed(0.9642, 1, 0.8249),
    )  # fmt: skip
    return header + struct.pack(">I", len(parts)) + table + body


def rgb_profile(curve, primaries=SRGB, name="made for a test"):
    columns = primaries_matrix(D65, *primaries).T.tolist()
    colorants = {
        tag: b"XYZ " + bytes(4) + fixed(*column)
        for tag, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)
    }
    return profile(b"RGB ", {**colorants, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)}, name=name)


def grey_profile(curve):
    return profile(b"GRAY", {b"kTRC": curve})


def table_profile(space=b"CMYK"):
    """A profile with a table of the corners: each ink takes 20 of L, cyan and magenta make a and b negative and
    positive; of RGB the complements."""
    channels = 4 if space == b"CMYK" else 3
    corners = []
    for place in range(2**channels):
        ink = [place >> (channels - 1 - k) & 1 for k in range(channels)]
        if space != b"CMYK":
            ink = [1 - x for x in ink]
        light = 100 - 20 * sum(ink)
        corners += [round(light * 2.55), 128 - 40 * ink[0], 128 + 40 * ink[1]]
    table = b"mft1" + bytes(4) + bytes([channels, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += bytes(range(256)) * channels + bytes(corners) + bytes(range(256)) * 3
    return profile(space, {b"A2B0": table}, b"prtr", b"Lab ", "tables")


def by_little_cms(levels, data, mode="RGB"):
    """Convert 8-bit levels ``[H, W, C]`` to sRGB by Little CMS."""
    height, width = levels.shape[:2]
    image = Image.frombytes(mode, (width, height), levels.astype(np.uint8).tobytes())
    made = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(data)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return np.asarray(made)
