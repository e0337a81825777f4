"""The ``layered`` command, a file for each of its sub-commands."""
