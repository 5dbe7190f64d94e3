"""Which names a server answers to: those in CONTROLLOOP_ALLOWED_HOSTS.

A page of another site can have its own name point to this machine, and then reads what it likes
(DNS rebinding); but its requests still carry that name. An address in figures cannot be taken over
so, and health checks use them. Where no names are listed, a server that this machine alone can
reach answers to none but localhost, and any other to all.
"""

import fnmatch
import ipaddress
import re
import sys
from collections.abc import Sequence
from typing import Any

VARIABLE = "CONTROLLOOP_ALLOWED_HOSTS"
PATTERN = re.compile(r"(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*")


def read_hosts(text: str) -> tuple[str, ...]:
    """Return the names in the variable, in lower case: "a.example.org, *.example.net".

    Raises:
        SystemExit: one is no name; the message is one line that names the variable.
    """
    names = tuple(name for one in text.split(",") if (name := one.strip().lower()))
    for name in names:
        if not PATTERN.fullmatch(name):
            sys.exit(f"{VARIABLE} has {name!r}; it must be names without ports, a.org,*.b.org.")
    return names


def answered_names(listed: Sequence[str], listens_on: str) -> Sequence[str] | None:
    """Return the names that a server on an address answers to, of those listed; None for any."""
    if listed:
        return listed
    try:
        is_own = ipaddress.ip_address(listens_on.strip("[]")).is_loopback
    except ValueError:
        is_own = listens_on == "localhost"
    return () if is_own else None


def is_allowed(host: str, names: Sequence[str]) -> bool:
    """Return whether a Host header's value is an address, this machine, or one of the names."""
    name = re.sub(r":\d*$", "", host).lower().rstrip(".")
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost" or any(fnmatch.fnmatchcase(name, one) for one in names)
    return True


class AllowedHosts:
    """Refuses requests under other names, with one sentence; for FastAPI's `middleware`."""

    def __init__(self, app: Any, names: Sequence[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer one request."""
        host = dict(scope.get("headers", ())).get(b"host", b"").decode("latin-1")
        if scope["type"] != "http" or not host or is_allowed(host, self._names):
            await self._app(scope, receive, send)
            return
        told = f"This server does not answer as {host!r}; whoever runs it can add it to {VARIABLE}."
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": told.encode()})
