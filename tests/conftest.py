"""Suites that need a ComfyUI or a browser are skipped without one; the last line of the run says so, loudly."""

import sys

import pytest

SKIPPED: list[str] = []
"""What could not run, and why."""


@pytest.fixture(scope="session")
def skip_suite():
    """``skip_suite(suite, why)``: skip the test, and tell of the suite at the end."""

    def skip(suite, why):
        line = f"{suite} ({why})"
        if line not in SKIPPED:
            SKIPPED.append(line)
        pytest.skip(why)

    return skip


def pytest_unconfigure():
    if SKIPPED:
        sys.stderr.flush()
        sys.stdout.write(f"\nSKIPPED SUITES: {'; '.join(SKIPPED)}\n")
        sys.stdout.flush()
