"""The one error type that a user sees."""

from __future__ import annotations


class LayeredError(ValueError):
    """Bad input, said in one line: where, what was got, what is allowed, how to fix it."""


def invalid(where: str, got: object, allowed: str, fix: str = "") -> LayeredError:
    """Build the error of one bad value.

    Args:
        where: layer and field, e.g. ``layer 'sky': opacity``.
        got: the offending value, shown shortened.
        allowed: what would have been right.
        fix: what to do about it, if that is not plain from ``allowed``.
    """
    shown = repr(got)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return LayeredError(f"{where} is {shown}; allowed: {allowed}" + (f". {fix}" if fix else ""))


def check_number(where: str, value: object, low: float, high: float) -> None:
    """Raise :class:`LayeredError` unless ``value`` is a finite number of ``low``..``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise invalid(where, value, f"a number {low:g}..{high:g}")


def check_whole(where: str, value: object, low: int, high: int) -> None:
    """Raise :class:`LayeredError` unless ``value`` is an int of ``low``..``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(where, value, f"a whole number {low}..{high}")
