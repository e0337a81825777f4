"""Says last, and loudly, which suites could not run."""

SKIPPED: list[str] = []


def pytest_unconfigure():
    if SKIPPED:
        import sys

        sys.stderr.flush()
        sys.stdout.write(f"\nSKIPPED SUITES: {'; '.join(SKIPPED)}\n")
        sys.stdout.flush()
