"""``python -m layered_diffusers``: the ``layered`` command."""

from layered_diffusers.cli import main

raise SystemExit(main())
