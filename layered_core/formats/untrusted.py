"""Parse XML and JSON from untrusted files."""

from __future__ import annotations

import json
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ..errors import LayeredError, invalid

NAMESPACE = "https://github.com/layered-diffusion/layered-diffusion/ns/1#"
"""XML namespace of this project's data in files."""

MAX_ELEMENTS = 100_000
"""Greatest number of XML elements; parsed, an element takes a hundred times the memory of its text."""


def parse_xml(data: bytes, where: str) -> Element:
    """Return the root element of an XML text; ``where`` names it in errors.

    Raises:
        LayeredError: the XML is broken, has a DTD or entities, or too many elements.
    """
    if data.count(b"<") > 2 * MAX_ELEMENTS:
        raise invalid(f"number of elements of {where}", data.count(b"<"), f"at most {MAX_ELEMENTS}")
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
