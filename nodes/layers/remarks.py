"""Tell the user what a node decided or left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
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


def warn(title: str, remark: str) -> None:
    """Write a warning to the log, and show it on the node that runs now, e.g. a sampler of ComfyUI whose MODEL or
    conditioning comes from us.

    Args:
        title: the name of our node, for the log.
        remark: one line.
    """
    logging.warning("%s: %s", title, remark)
    running = get_executing_context()
    if running is not None:
        PromptServer.instance.send_progress_text(f"{title}: {remark}", running.node_id)
