"""Lets only the page itself, and only what it needs, through to its server.

Gradio's server can do more than the page asks for: fetch addresses, lend itself to other programs, tell of itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = ("127.0.0.1", "localhost", "[::1]")
"""Names by which a machine calls itself."""

EVERY = ("0.0.0.0", "::", "")
"""Hosts that mean every address of the machine, so its names are not known."""

PATHS = (
    "/", "/config", "/theme.css", "/favicon.ico", "/gradio_api/startup-events", "/gradio_api/upload",
    "/gradio_api/upload_progress", "/gradio_api/queue/join", "/gradio_api/queue/data",
)  # fmt: skip
"""Addresses that the page asks for."""

FOLDERS = ("/assets/", "/static/", "/gradio_api/heartbeat/", "/gradio_api/run/", "/gradio_api/file=/")
"""Beginnings of addresses that the page asks for."""


class Guard:
    """Refuses requests by other names than the host's, from other sites, and for anything the page does not need."""

    def __init__(self, app: ASGIApp, host: str | None) -> None:
        """``host`` is the address that the server listens at; None: names and sites are not looked at."""
        self.app = app
        self.names = None if host is None else () if host in EVERY else (*LOCAL, host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._may(scope):
            await send(
                {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]}
            )
            await send({"type": "http.response.body", "body": b"This page does not serve that."})
            return
        await self.app(scope, receive, send)

    def _may(self, scope: Scope) -> bool:
        path = scope["path"]
        if path not in PATHS and not path.startswith(FOLDERS):
            return False
        if self.names is None:
            return True
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self.names and _name(host) not in self.names:
            return False
        return origin is None or urlsplit(origin).netloc == host


def _name(host: str) -> str:
    """Return a host without its port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
