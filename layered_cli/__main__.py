"""``python -m layered_diffusers``: the ``layered`` command."""

from layered_cli.command import main

raise SystemExit(main())
