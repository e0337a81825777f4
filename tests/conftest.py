"""Skip the suites that need a ComfyUI or a browser if there is none, and list them in the last lines of the
run."""

import gc
import sys

import pytest

gc.disable()  # until the tests are collected: what is imported stays

SKIPPED: list[str] = []
"""The skipped suites, each with its reason."""

COULD_NOT_START: dict[str, str] = {}
"""Installed programs that did not start, each with the end of its log. Each makes the run fail once."""

TRIED_ON: set[str] = set()
"""The installs of ComfyUI that tests ran on, for the closing lines."""


def pytest_collection_finish():
    """Let the search for garbage leave out what collecting the tests has brought, torch and diffusers above all."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def skip_suite():
    """Return ``skip_suite(suite, why)``, which skips the test and lists the suite at the end of the run."""

    def skip(suite, why):
        line = f"{suite} ({why})"
        if line not in SKIPPED:
            SKIPPED.append(line)
        pytest.skip(why)

    return skip


@pytest.fixture(scope="session")
def could_not_start():
    """Return ``could_not_start(what, log)``, which skips the test, and at the end of the run shows the log
    once and makes the run fail."""

    def stop(what, log):
        COULD_NOT_START.setdefault(what, log[-4000:])
        pytest.skip(f"{what} could not start: see the end of the run")

    return stop


@pytest.fixture(scope="session")
def tried_on():
    """Return ``tried_on(line)``, which names, at the end of the run, the install on which tests ran."""
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
