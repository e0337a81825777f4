"""Tell the user what a node decided or left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from comfy_api.latest import io
from server import PromptServer


def tell(node: type[io.ComfyNode], title: str, remarks: Sequence[str]) -> str:
    """Show remarks as text on a node and write them to the log; return them as one text, a line each.

    Args:
        node: the class of the node that runs; it has ``unique_id`` among its hidden inputs.
        title: the node's name, for the log.
        remarks: any number of lines; none shows nothing.
    """
    report = "\n".join(remarks)
    if report:
        logging.info("%s: %s", title, "; ".join(remarks))
    if report and node.hidden is not None:
        PromptServer.instance.send_progress_text(report, node.hidden.unique_id)
    return report
