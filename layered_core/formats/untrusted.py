"""XML and JSON from files that are not to be trusted."""

from __future__ import annotations

import json
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ..errors import LayeredError, invalid

NAMESPACE = "https://github.com/layered-diffusion/layered-diffusion/ns/1#"
"""XML namespace of what is ours in a file."""

MAX_ELEMENTS = 100_000
"""Greatest number of XML tags; a parsed one takes a hundred times its bytes."""


def parse_xml(data: bytes, where: str) -> Element:
    """The root element. Entities, DTDs and broken XML are refused with a :class:`LayeredError`."""
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
    """A JSON object; anything else is a :class:`LayeredError`."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LayeredError(f"{where} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise invalid(where, data, "a JSON object")
    return data
