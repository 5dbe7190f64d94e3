"""Who asks: one visitor's share of the queue."""

import ipaddress
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import gradio as gr
from fastapi import HTTPException, Request

from apps.web.pages.widgets import ONE_AT_A_TIME, runs_at_once

COUNTED = (runs_at_once(1)["concurrency_id"], ONE_AT_A_TIME["concurrency_id"])
"""The kinds of events of which a visitor may have so many: those that others wait for."""
IPV6_OF_ONE = 64
"""Bits of an IPv6 address that one household has in common."""


def visitor_of(request: Request, username: str | None) -> str:
    """Return what tells visitors apart; "" for this machine itself.

    The name that they have logged in with (Gradio's own login, or Hugging Face's on a Space), else
    their address; behind a proxy that FORWARDED_ALLOW_IPS names, the one that it tells.
    """
    session = request.scope.get("session") or {}
    profile = (session.get("oauth_info") or {}).get("userinfo") or {}
    if name := username or profile.get("preferred_username"):
        return f"user {name}"
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_loopback:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address), IPV6_OF_ONE), strict=False))
    return host


def limit_visitors(blocks: gr.Blocks, most: int) -> None:
    """Refuse a visitor's event beyond `most` that run or wait; call it when the queue is set."""
    queue, push = blocks._queue, blocks._queue.push

    def events() -> Iterator[Any]:
        for waiting in queue.event_queue_per_concurrency_id.values():
            yield from waiting.queue
        for running in queue.active_jobs:
            yield from running or ()

    async def push_for(body: Any, request: Request, username: str | None) -> Any:
        function = blocks.fns.get(body.fn_index)
        visitor = visitor_of(request, username)
        if visitor and function is not None and function.concurrency_id in COUNTED:
            theirs = [
                one
                for one in events()
                if one.concurrency_id in COUNTED
                and one.alive
                and visitor_of(one.request, one.username) == visitor
            ]
            if len(theirs) >= most:
                raise HTTPException(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    f"You have {len(theirs)} requests here already, and one visitor may have "
                    f"{most}: please try again when one is done.",
                )
        return await push(body=body, request=request, username=username)

    queue.push = push_for  # type: ignore[method-assign]
