"""What the server keeps of each visitor, and until when.

Gradio 6.31 keeps a configuration of every component of every page for each visitor, for deep links,
and drops a session only when there are too many (findings/gradio_sessions.sh): 2.4 MB of this site,
and 0.15 s of a processor, for everybody who ever came. Without that it still copies for each one
the tables of all components and events, another 0.11 MB; here they are shared.
"""

from collections import ChainMap
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import gradio as gr
import gradio.state_holder
from gradio.blocks import BlocksConfig
from gradio.state_holder import SessionState

KEPT_CLOSED, KEPT_UNUSED = timedelta(hours=1), timedelta(hours=24)
"""How long one is kept whose page was closed, as Gradio does with its values, for a laptop may
sleep; and one that nobody has used, for a program need not say that it leaves."""
MOST_SESSIONS = 1000
"""Beyond them the one used least recently is dropped."""


class Session(SessionState):
    """Gradio's, without what only deep links and rendering need; these pages have neither."""

    def __init__(self, blocks: gr.Blocks) -> None:
        shared = blocks.default_config
        own = BlocksConfig(shared.root_block)
        # What an event changes for this visitor lies above what all have.
        own.blocks = ChainMap({}, shared.blocks)  # type: ignore[assignment]
        own.fns = ChainMap({}, shared.fns)  # type: ignore[assignment]
        own.fn_id = shared.fn_id
        config: Any = SimpleNamespace(default_config=own, blocks={})
        super().__init__(config)

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """Keep no value that was sent: pictures and results in HTML are large."""

    def _update_config(self, key: int) -> None:
        """Keep none here either."""


def install(blocks: gr.Blocks) -> None:
    """Have sessions made and dropped so, in this process; call it before pages are served."""
    gradio.state_holder.SessionState = Session  # type: ignore[misc]
    blocks.state_session_capacity = MOST_SESSIONS


def drop_old(blocks: gr.Blocks) -> None:
    """Drop the sessions that were closed or used long ago. May be called in any thread."""
    holder = getattr(blocks, "state_holder", None)
    if holder is None:  # not served yet
        return
    now = datetime.now()
    with holder.lock:
        for name, session in list(holder.session_data.items()):
            unused = now - holder.time_last_used.get(name, now)
            if unused >= (KEPT_CLOSED if session.is_closed else KEPT_UNUSED):
                holder.session_data.pop(name, None)
                holder.time_last_used.pop(name, None)
