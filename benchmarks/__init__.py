"""Commands that measure and print figures: ``python -m benchmarks.<name> [--json]``."""
