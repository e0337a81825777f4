"""``python -m layered_cli``: the ``layered`` command."""

from layered_cli.command import main

raise SystemExit(main())
