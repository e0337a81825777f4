"""Suites that need a ComfyUI or a browser are skipped without one; the last lines of the run say so,
loudly."""

import sys

import pytest

SKIPPED: list[str] = []
"""What could not run, and why."""

COULD_NOT_START: dict[str, str] = {}
"""What is installed and did not start, with the end of its log. The run fails, once for each."""

TRIED_ON: set[str] = set()
"""The installs of ComfyUI that tests ran on, for the closing lines."""


@pytest.fixture(scope="session")
def skip_suite():
    """``skip_suite(suite, why)``: skip the test, and tell of the suite at the end."""

    def skip(suite, why):
        line = f"{suite} ({why})"
        if line not in SKIPPED:
            SKIPPED.append(line)
        pytest.skip(why)

    return skip


@pytest.fixture(scope="session")
def could_not_start():
    """``could_not_start(what, log)``: skip the test, and let the whole run fail and show the log once, at its
    end."""

    def stop(what, log):
        COULD_NOT_START.setdefault(what, log[-4000:])
        pytest.skip(f"{what} could not start: see the end of the run")

    return stop


@pytest.fixture(scope="session")
def tried_on():
    """``tried_on(line)``: name, at the end of the run, the install that tests ran on."""
    return TRIED_ON.add


def pytest_sessionfinish(session):
    if COULD_NOT_START:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    for what, log in COULD_NOT_START.items():
        terminalreporter.section(f"{what} could not start", red=True)
        terminalreporter.write_line(log)


def pytest_unconfigure():
    sys.stderr.flush()
    for line in sorted(TRIED_ON):
        sys.stdout.write(f"\nTESTED ON {line}\n")
    if SKIPPED:
        sys.stdout.write(f"\nSKIPPED SUITES: {'; '.join(SKIPPED)}\n")
    if COULD_NOT_START:
        sys.stdout.write(f"\nFAILED: {', '.join(COULD_NOT_START)} could not start; its log is above\n")
    sys.stdout.flush()
