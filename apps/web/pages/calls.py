"""Calls of endpoints by programs, on their way in: what was left out, and pictures in other forms.

gradio_client fills in defaults and uploads files; curl and JavaScript send what they like.
"""

from http import HTTPStatus
from typing import Any

import anyio
import gradio as gr
from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse
from gradio.block_function import BlockFunction
from gradio.context import Context, set_render_context
from gradio.exceptions import InvalidPathError
from gradio.processing_utils import hash_bytes
from gradio.route_utils import FnIndexInferError

from apps.web.files import FULL, upload_folder
from apps.web.jobs.errors import sentence_of
from apps.web.jobs.request import NOT_AN_UPLOAD, bytes_of_data_url, own_file
from apps.web.pages.widgets import plain_errors
from core.errors import BadInput
from core.files import write_whole

HOW_TO_SEND = (
    'The picture must be uploaded; with gradio_client, use handle_file("picture.png"). It can also '
    'be sent as {"url": "data:image/png;base64,…"}.'
)
FETCH_FAILED = "The picture could not be fetched from its address; please upload it instead."


CLOSING = "The server is about to restart: please try again in a minute."


class CallableBlocks(gr.Blocks):
    """Blocks whose endpoints give every value that is missing or null its default."""

    is_closing = False
    """Whether what is new is refused; what runs goes on."""

    more_pages = False
    """Whether another page follows the one that is being built."""

    def __exit__(self, exc_type: type[BaseException] | None = None, *others: Any) -> None:
        """End a page as Gradio does, but make the server's app only after the last one.

        It is made of all pages there are: of 14, made 15 times, it took a third of the start.
        """
        if exc_type is not None or not self.more_pages:
            super().__exit__(exc_type, *others)
            return
        self.fill_expected_parents()
        set_render_context(self.parent)
        self.default_config.attach_load_events()
        Context.root_block = None
        self.page = ""
        self.exited = True

    async def preprocess_data(
        self, block_fn: BlockFunction, inputs: list[Any], *others: Any, **options: Any
    ) -> list[Any]:
        """Read a call's values as Gradio does; what is wrong with an endpoint's is a sentence."""
        if self.is_closing and block_fn.queue:
            raise gr.Error(CLOSING, title="Not yet", print_exception=False)
        if block_fn.api_visibility != "public":
            return await super().preprocess_data(block_fn, inputs, *others, **options)
        given = [*inputs, *[None] * (len(block_fn.inputs) - len(inputs))]
        with plain_errors(as_html=False):
            for place, block in enumerate(block_fn.inputs):
                if given[place] is None:
                    given[place] = block.value
                elif isinstance(block, gr.Image):
                    given[place] = await anyio.to_thread.run_sync(_received, given[place], block)
                else:
                    given[place] = _without_odd_meta(given[place])
            try:
                return await super().preprocess_data(block_fn, given, *others, **options)
            except InvalidPathError:
                raise BadInput(NOT_AN_UPLOAD) from None
            except Exception:
                if any(_is_elsewhere(value) for value in given):  # fetching raises bare Exceptions
                    raise BadInput(FETCH_FAILED) from None
                raise


def _received(value: Any, block: gr.Image) -> dict[str, Any]:
    """Return Gradio's record of a sent picture; a data URL's is written to the upload folder.

    Raises:
        BadInput: it is not a record, or its data URL is malformed or too large.
    """
    record = {"url": value} if isinstance(value, str) else value
    if not isinstance(record, dict) or not isinstance(record.get("meta") or {}, dict):
        raise BadInput(HOW_TO_SEND)
    address = record.get("path") or record.get("url")
    if not isinstance(address, str):
        raise BadInput(HOW_TO_SEND)
    if file := own_file(address):  # Gradio would not fetch it from this machine
        return _uploaded(file)
    if record.get("path"):
        return {"path": address, "meta": record.get("meta") or {}}
    if not address.lower().startswith("data:"):
        raise BadInput(HOW_TO_SEND)
    # In a file, because Gradio keeps a session's values in memory; named as uploads are. Gradio's
    # own function writes it in its place, where another call with the same picture reads it.
    data = bytes_of_data_url(address)
    file = upload_folder() / hash_bytes(data) / "picture"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda path: path.write_bytes(data))
    return _uploaded(str(file.resolve()))


def _without_odd_meta(value: Any) -> Any:
    """Return a value whose file records have no "meta" but a dict: Gradio looks into any other."""
    if isinstance(value, list):
        return [_without_odd_meta(one) for one in value]
    if not isinstance(value, dict):
        return value
    odd = "path" in value and not isinstance(value.get("meta", {}), dict)
    return {k: _without_odd_meta(one) for k, one in value.items() if not (odd and k == "meta")}


def _uploaded(file: str) -> dict[str, Any]:
    return {"path": file, "meta": {"_type": "gradio.FileData"}}


def _is_elsewhere(value: Any) -> bool:
    """Return whether a value is a picture that Gradio fetches from another server."""
    path = value.get("path") if isinstance(value, dict) else None
    return isinstance(path, str) and path.startswith(("http://", "https://"))


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """Say what is wrong with a call that Gradio would answer with Internal Server Error.

    Raises:
        Exception: it is another error.
    """
    name = request.path_params.get("api_name")
    if isinstance(error, FnIndexInferError) or error.args == (f"/{name}",):
        told = f"There is no endpoint /{name}; /gradio_api/info lists those there are."
        return JSONResponse({"error": told}, HTTPStatus.NOT_FOUND)
    if name and isinstance(error, TypeError) and "/call/v2/" in request.url.path:
        # An argument that is unknown, or required and missing.
        return JSONResponse({"error": str(error)}, HTTPStatus.BAD_REQUEST)
    raise error


async def tell_full_disk(_: Request, error: Exception) -> PlainTextResponse:
    """Say in words that an upload found no room.

    Raises:
        Exception: it is another error.
    """
    if isinstance(error, OSError) and error.errno in FULL:
        return PlainTextResponse(sentence_of(error), HTTPStatus.INSUFFICIENT_STORAGE)
    raise error


REFUSALS = {
    **dict.fromkeys((TypeError, KeyError, FnIndexInferError), refuse),
    OSError: tell_full_disk,
}
"""For FastAPI's exception_handlers."""
