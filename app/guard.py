"""What the server refuses before the page sees it: requests for other names, from other pages, and uploads without room.

A page on the internet can make its own name point to 127.0.0.1 (DNS rebinding) and then read what is served there; its
requests still carry that name in Host. Requests that another page sends carry that page's address in Origin.
"""

import asyncio
import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from fgrpo.config import KitError

LOCAL = ("localhost", "127.0.0.1", "::1")
"""names that are always answered, as no name server is asked for them"""
ANY, UPLOAD = "*", "/gradio_api/upload"
DRAINED = 100_000_000
"""maximum bytes of a refused upload that are read before the answer"""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def host_name(text: str) -> str:
    """A host name or address as `--allow-host` takes it, in the form that is compared. Raises KitError on anything else."""
    name = text.strip().lower()
    if name == ANY:
        return name
    with suppress(ValueError):
        return str(ipaddress.ip_address(name.removeprefix("[").removesuffix("]")))
    name = name.removesuffix(".")
    if not re.fullmatch(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", name):
        raise KitError(
            f"--allow-host {text[:80]!r}: give a name or an address alone, as in class.example.org or 192.168.1.5."
        )
    return name


def _authority(scheme: str, netloc: str) -> tuple[str, int] | None:
    """Name and port of `name[:port]`, or None if it is malformed."""
    try:
        parts = urlsplit(f"//{netloc}")
        if not parts.hostname or "@" in netloc or parts.path or parts.query or parts.fragment:
            return None
        name, port = parts.hostname.lower().removesuffix("."), parts.port
    except ValueError:
        return None
    with suppress(ValueError):
        name = str(ipaddress.ip_address(name))
    return name, port if port is not None else {"https": 443}.get(scheme, 80)


class Guard:
    """ASGI middleware: answers 403 to a Host or Origin that is not ours, and 403, 411 or 507 to an upload without room."""

    def __init__(self, app: Any, names: Iterable[str], own: str, room: Callable[[int], None] | None):
        """`names`: what visitors may call this server, as `host_name` returns it; `own`: the address it listens on.

        `room` raises KitError unless so many more bytes may be stored; None: there are no uploads.
        """
        self.app, self.names, self.room = app, {*names}, room
        self.answered = {*LOCAL, own, *self.names}
        self.coming = 0  # bytes of the uploads that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with the reason why not."""
        status, problem, size = 403, "", 0
        if scope["type"] in ("http", "websocket") and ANY not in self.names:
            problem = self._stranger(scope)
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/").endswith(UPLOAD):
            length = "".join(_header(scope, b"content-length"))
            size = int(length) if length.isdecimal() else 0
            if self.room is None:
                problem = problem or "This app takes no uploads."
            elif not size and not problem:
                status, problem = 411, "An upload must name its length."
            elif not problem:
                try:
                    await asyncio.to_thread(self.room, self.coming + size)  # reads a folder
                except KitError as error:
                    status, problem = 507, str(error)
        if problem:
            if 0 < size <= DRAINED:  # a browser reads the answer only when it has sent everything
                while scope["type"] == "http" and (await receive()).get("more_body"):
                    pass
            await _refuse(scope, send, status, problem)
            return
        self.coming += size
        try:
            await self.app(scope, receive, send)
        finally:
            self.coming -= size

    def _stranger(self, scope: Scope) -> str:
        """Why a request is refused for its Host or Origin; empty if it is not."""
        hosts, origins = (_header(scope, name) for name in (b"host", b"origin"))
        host = _authority("http", hosts[0]) if len(hosts) == 1 else None
        if host is None or host[0] not in self.answered:
            name = host[0] if host else ", ".join(hosts)
            return (
                f"The app does not answer to the name {name[:80]!r}: open the address that it printed, or start it with "
                "--allow-host NAME."
            )
        for origin in origins:
            scheme, _, place = origin.partition("://")
            found = _authority(scheme, place)
            # where a proxy ends TLS, Host has no port and the scheme here is http: the default port is the origin's
            if found is None or (found != _authority(scheme, hosts[0]) and found[0] not in self.names):
                return f"The app does not answer to requests of the page {origin[:80]!r}."
        return ""


def _header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


async def _refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    """Answer with one sentence as plain text."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode("utf-8", "replace")})
