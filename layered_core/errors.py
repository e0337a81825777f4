"""The error type that users see, and checks that raise it."""

from __future__ import annotations


class LayeredError(ValueError):
    """The user's input is wrong. The text is one line: where, what was got, what is allowed, how to fix
    it."""


def invalid(where: str, got: object, allowed: str, fix: str = "") -> LayeredError:
    """Return the error for one bad value: "WHERE is GOT; allowed: ALLOWED. FIX".

    Args:
        where: the layer and the field, e.g. ``layer 'sky': opacity``.
        got: the bad value; its ``repr`` is cut to 80 characters.
        allowed: which values are allowed.
        fix: what the user can do, where ``allowed`` does not make that plain.
    """
    shown = repr(got)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return LayeredError(f"{where} is {shown}; allowed: {allowed}" + (f". {fix}" if fix else ""))


def check_number(where: str, value: object, low: float, high: float) -> None:
    """Raise :class:`LayeredError` unless ``value`` is a finite number in ``low``..``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise invalid(where, value, f"a number {low:g}..{high:g}")


def check_whole(where: str, value: object, low: int, high: int) -> None:
    """Raise :class:`LayeredError` unless ``value`` is an int in ``low``..``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(where, value, f"a whole number {low}..{high}")


def check_memory(what: str, needed: int, free: int, where: str, fix: str) -> None:
    """Raise :class:`LayeredError` if ``what`` needs more bytes of ``where`` than the ``free`` ones."""
    if needed > free:
        raise LayeredError(
            f"{what}: needs {needed / 2**30:.1f} GiB of {where}, and {free / 2**30:.1f} GiB are free. {fix}"
        )


def check_letters(where: str, text: str) -> None:
    """Raise :class:`LayeredError` if a text has half a surrogate pair, which JSON allows and no tokenizer
    reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        letter = text[error.start]
        raise invalid(
            where, text, "whole letters", f"Letter {error.start + 1} is half of one, {letter!r}: remove it"
        ) from None
