"""Parse XML and JSON from untrusted files, and follow the names of files in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ..errors import LayeredError, invalid

NAMESPACE = "https://github.com/layered-diffusion/layered-diffusion/ns/1#"
"""XML namespace of this project's data in files."""

MAX_ELEMENTS = 100_000
"""Greatest number of XML elements; parsed, an element takes a hundred times the memory of its text."""

MAX_ATTRIBUTES = 200_000
"""Greatest number of attributes of all XML elements."""


def parse_xml(data: bytes, where: str) -> Element:
    """Return the root element of an XML text; ``where`` names it in errors.

    Raises:
        LayeredError: the XML is broken, has a DTD or entities, or too many elements or attributes.
    """
    if data.count(b"<") > 2 * MAX_ELEMENTS:
        raise invalid(f"number of elements of {where}", data.count(b"<"), f"at most {MAX_ELEMENTS}")
    attributes = data.count(b'="') + data.count(b"='")
    if attributes > MAX_ATTRIBUTES:
        raise invalid(f"number of attributes of {where}", attributes, f"at most {MAX_ATTRIBUTES}")
    try:
        return fromstring(data.strip(b"\0 \r\n\t"), forbid_dtd=True)
    except DefusedXmlException as error:
        raise LayeredError(
            f"{where} has a DTD or entities, which are not read: {type(error).__name__}"
        ) from None
    except (ParseError, ValueError, LookupError, RecursionError) as error:
        raise LayeredError(f"{where} is not XML: {error}") from None


def parse_json(text: str, where: str) -> dict[str, Any]:
    """Return the JSON object of a text; ``where`` names it in errors.

    Raises:
        LayeredError: the text is not JSON, or not an object.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LayeredError(f"{where} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise invalid(where, data, "a JSON object")
    return data


def file_inside(folder: Path, name: str) -> Path | None:
    """Return the path of the file that an untrusted ``name`` means in ``folder``, whether or not it exists;
    None if the name is no file name, or leads out of the folder, also by a link."""
    if not name or "\0" in name or "\\" in name:
        return None
    try:
        path = folder / name
        out = Path(name).is_absolute() or ".." in path.parts[len(folder.parts) :]
        return None if out or not path.resolve().is_relative_to(folder.resolve()) else path
    except (OSError, ValueError, RuntimeError):  # too long a name, half a surrogate pair, links in a circle
        return None
