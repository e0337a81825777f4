"""The suites under host/ run under ComfyUI's own python, from test_host.py; this python cannot import them."""

collect_ignore = ["host"]

SKIPPED: list[str] = []
"""Suites that could not run, for the last line."""


def pytest_unconfigure():
    """Say it last, and loudly."""
    if SKIPPED:
        import sys

        sys.stderr.flush()
        sys.stdout.write(f"\nSKIPPED SUITES: {'; '.join(SKIPPED)}\n")
        sys.stdout.flush()
