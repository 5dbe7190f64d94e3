"""Starts the server: command line, environment, theme, and limits on uploads and queue."""

import argparse
import codecs
import importlib
import logging
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apps
from apps.web.hosts import AllowedHosts, answered_names, read_hosts
from apps.web.janitor import Limits, OwnFolder, remove_partial_copies, sweeping
from apps.web.libraries import check_libraries, load_torchvision
from apps.web.limits import RequestLimits, read_whole, require_whole
from apps.web.tool import Tool
from core.condition import Condition
from core.errors import SuiteError
from models.catalog.paths import LIST_NAMES, LISTING, LISTINGS

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

    from apps.web.suite import Suite
    from core.pipeline import Pipeline

log = logging.getLogger(__name__)

HTML = Path(__file__).resolve().parent / "html"
DEFAULT_QUEUE = 20
LAST_PORT = 65535
MOST_HOURS = 24 * 366
MOST_GIGABYTES = 1_000_000
LOG_FORMATS = ("text", "json")
GRADIO_NUMBERS = {
    "GRADIO_SERVER_PORT": (1, LAST_PORT),
    "GRADIO_NUM_PORTS": (1, LAST_PORT),
    "GRADIO_NODE_SERVER_PORT": (1, LAST_PORT),
    "GRADIO_NODE_NUM_PORTS": (1, LAST_PORT),
    "GRADIO_NUM_WORKERS": (0, 1000),
    "GRADIO_DEFAULT_CONCURRENCY_LIMIT": (1, 1000),
    "GRADIO_ANALYTICS_MAX_EVENTS": (1, 10**9),
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": (1, 10**9),
    "GRADIO_DEBUG": (0, 1),
}
"""Variables that Gradio reads as numbers, with a traceback if one is not, and their bounds."""
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""Variables of proxies, in capitals or not."""
ON_ZERO_GPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
"""Whether this is a Space that lends a GPU for the seconds of a request; as `spaces` reads it."""
FETCHING_S = 5.0
"""A server that ends lets results of the last requests be fetched until nobody has for so long."""
MOST_FETCHING_S = 60.0
OWN_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Environment:
    """CONTROLLOOP_MAX_QUEUE, _OUTPUT, _RESULTS_HOURS, _RESULTS_GB, _LOG, _METRICS_PORT and limits.

    RequestLimits reads these, models.store and core others.

    Of Gradio's own variables, and of proxies, those are checked that would end in a traceback.
    """

    max_queue: int
    output: Path | None
    limits: Limits = field(default_factory=Limits)
    own: OwnFolder | None = None
    """Where Gradio keeps uploads and results; None leaves it to Gradio, and nothing is removed."""
    requests: RequestLimits = field(default_factory=RequestLimits)
    log: str = "text"
    metrics_port: int | None = None
    """Where Prometheus' metrics are served; None for nowhere."""
    hosts: tuple[str, ...] = ()
    """The names that the server answers to; () for any."""

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> "Environment":
        """Read and check the variables.

        Raises:
            SystemExit: one is malformed; the message is one line that names it.
        """
        _require_unicode_names()
        queue = read_whole(variables, "CONTROLLOOP_MAX_QUEUE", DEFAULT_QUEUE, 1000)
        requests = RequestLimits.read(variables)
        log_format = variables.get("CONTROLLOOP_LOG") or LOG_FORMATS[0]
        if log_format not in LOG_FORMATS:
            sys.exit(f"CONTROLLOOP_LOG is {log_format!r}; it must be {' or '.join(LOG_FORMATS)}.")
        metrics_port = variables.get("CONTROLLOOP_METRICS_PORT")
        if metrics_port:
            require_whole("CONTROLLOOP_METRICS_PORT", metrics_port, 1, LAST_PORT)
        for name, bounds in GRADIO_NUMBERS.items():
            if name in variables:
                require_whole(name, variables[name], *bounds)
        root_path = variables.get("GRADIO_ROOT_PATH", "")
        if root_path and not root_path.startswith(("/", "http://", "https://")):
            sys.exit(
                f"GRADIO_ROOT_PATH is {root_path!r}; it must be a path that starts with / or a URL."
            )
        if name := variables.get("GRADIO_SERVER_NAME"):
            if ":" in name:
                sys.exit(f"GRADIO_SERVER_NAME is {name!r}; please give an IPv6 address by --host.")
            _require_own_address("GRADIO_SERVER_NAME", name)
        output = variables.get("CONTROLLOOP_OUTPUT")
        folder = Path(output).expanduser().resolve() if output else None
        if folder is not None and _unwritable(folder):
            sys.exit(
                f"CONTROLLOOP_OUTPUT is {output!r}; it must be a folder that can be written to."
            )
        usual = Limits()
        limits = Limits(
            read_whole(variables, "CONTROLLOOP_RESULTS_HOURS", usual.hours, MOST_HOURS),
            read_whole(variables, "CONTROLLOOP_RESULTS_GB", usual.gigabytes, MOST_GIGABYTES),
        )
        if (listing := variables.get(LISTING) or LIST_NAMES) not in LISTINGS:
            sys.exit(f"{LISTING} is {listing!r}; it must be {' or '.join(LISTINGS)}.")
        _require_proxies()
        return cls(
            queue,
            folder,
            limits,
            _own_folder(variables),
            requests,
            log_format,
            int(metrics_port) if metrics_port else None,
            read_hosts(variables.get("CONTROLLOOP_ALLOWED_HOSTS", "")),
        )


def _require_unicode_names() -> None:
    """Refuse a locale in which a file cannot have every name: uploads would end in a traceback.

    Raises:
        SystemExit: the message is one line that names what to set.
    """
    encoding = sys.getfilesystemencoding()
    if codecs.lookup(encoding).name != "utf-8":
        sys.exit(
            f"Files' names are {encoding!r} in this locale, and must be UTF-8: set PYTHONUTF8=1."
        )


def _unwritable(folder: Path) -> str:
    """Return why a folder, which is made if it is not there, takes no file; "" if it does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"ControlLoop")  # a full disk accepts an empty file
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _own_folder(variables: Mapping[str, str]) -> OwnFolder:
    """Return a folder of this server's own for Gradio's files, in GRADIO_TEMP_DIR if that is set.

    Gradio's usual one is shared by all its servers, so that nothing there could be removed.

    Raises:
        SystemExit: none can be written to; the message is one line that names what to set.
    """
    given = variables.get("GRADIO_TEMP_DIR")
    if given:
        folder = Path(given).expanduser().resolve() / "controlloop"
        if problem := _unwritable(folder):
            sys.exit(
                f"GRADIO_TEMP_DIR is {given!r}; it must be a folder that can be written to "
                f"({problem})."
            )
        return OwnFolder(folder)
    try:
        # On Windows the temporary folder is one's own.
        user = os.getuid() if hasattr(os, "getuid") else 0
        usual = Path(tempfile.gettempdir()).resolve() / f"controlloop-{user}"
        usual.mkdir(mode=0o700, exist_ok=True)
        if not _is_ones_own(usual):  # whoever made it could read and change what is in it
            usual = Path(tempfile.mkdtemp(prefix="controlloop-"))
        problem = _unwritable(usual)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        sys.exit(
            f"There is no folder for temporary files ({problem}): set GRADIO_TEMP_DIR and TMPDIR "
            "to one that can be written to."
        )
    return OwnFolder(usual)


def _is_ones_own(folder: Path) -> bool:
    """Return whether a folder is no link, and this user's alone to write to."""
    found = folder.lstat()
    if not hasattr(os, "getuid"):
        return stat.S_ISDIR(found.st_mode)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _require_proxies() -> None:
    """Refuse proxies that the HTTP client cannot use: Gradio would end with a traceback.

    Raises:
        SystemExit: the message is one line that names the variables, without their passwords.
    """
    names = [name for name in os.environ if name.upper() in (*PROXIES, "NO_PROXY")]
    if not names:
        return
    import httpx  # noqa: PLC0415 - only behind a proxy: --help and --list must not wait for it

    try:
        httpx.Client().close()
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        sys.exit(f"The proxy in {' or '.join(names)} cannot be used: {reason}.")


def _bypass_proxies(host: str | None) -> None:
    """Have this process reach itself without a proxy, as Gradio does at every start."""
    if not any(name.upper() in PROXIES for name in os.environ):
        return
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [*filter(None, os.environ.get(name, "").split(",")), *OWN_HOSTS]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, host] if host else hosts))


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that single apps and the whole suite share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--host", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument(
        "--port", type=_port, help="port to listen on (default: the first free from 7860)"
    )
    parser.add_argument(
        "--model", help="a model's name, or a path to a checkpoint (default: diorama)"
    )
    parser.add_argument("--mcp", action="store_true", help="also serve the apps as MCP tools")
    return parser


def _require_own_address(name: str, host: str) -> None:
    """Refuse an address that is not this machine's, which Gradio takes for a port in use.

    Raises:
        SystemExit: the message is one line that names what was given.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as listening:
            listening.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        sys.exit(
            f"{name} is {host!r}, which is no address of this machine ({reason}); use 127.0.0.1 "
            "for this machine alone, or 0.0.0.0 for all who can reach it."
        )


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text} is not a port (1 to {LAST_PORT})")
    return int(text)


def make_suite(
    model: str | None,
    environment: Environment,
    pipeline: Callable[..., "Pipeline"] | None = None,
) -> "Suite":
    """Return the suite; exit with one line if the model or the device is not available.

    `pipeline` makes its pipeline, if it does not run here.
    """
    check_libraries()
    if environment.own:
        os.environ["GRADIO_TEMP_DIR"] = str(environment.own.path)  # read when Gradio is imported
    if ON_ZERO_GPU:
        importlib.import_module("spaces")  # pretends a GPU, so before torch is asked for one
    from apps.web.suite import Suite  # noqa: PLC0415 - torch takes seconds; --help and --list do without
    from apps.web.zero_gpu import RUNS, LentGPU  # noqa: PLC0415
    from core.images import DECODING  # noqa: PLC0415
    from core.marking import Marks, mark_with  # noqa: PLC0415
    from core.pipeline import Pipeline  # noqa: PLC0415
    from models.store import Store  # noqa: PLC0415

    usual = pipeline or Pipeline
    limits = environment.requests
    DECODING.amount = limits.max_decoded_mp * 10**6
    try:
        mark_with(Marks.read())
        store = Store(most_control_bytes=limits.controlnet_gb * 2**30)
        suite = Suite(
            store,
            model or "",
            environment.output,
            environment.max_queue,
            environment.limits.hours,
            partial(LentGPU, store, apps.conditions()) if ON_ZERO_GPU else usual,
            limits,
        )
    except SuiteError as error:
        sys.exit(str(error))
    if ON_ZERO_GPU:
        suite.runs = min(suite.runs, RUNS)
    return suite


def serve_one(app: Condition | Tool) -> None:
    """Run one app: the main block of every app file."""
    options = arguments(f"{app.title}: {app.blurb}").parse_args()
    environment = Environment.read()
    suite = make_suite(options.model, environment)
    from apps.web.site import build_app  # noqa: PLC0415 - as above, for gradio

    page = build_app(app, suite)
    if isinstance(app, Condition):
        launch(page, environment, options, suite=suite, first=app)
    else:  # a tool needs no model
        launch(page, environment, options)


def launch(
    blocks: "gr.Blocks",
    environment: Environment,
    options: argparse.Namespace,
    block: bool = True,
    suite: "Suite | None" = None,
    first: Condition | None = None,
) -> str:
    """Serve pages with the suite's theme and limits; returns the address if not blocking.

    Then loads what `first` needs of the suite's first model. Without a suite /readyz does not wait
    for its model.

    Blocking, it returns when the process is asked to stop and all running requests are finished.
    """
    from apps.web.files import upload_folder  # noqa: PLC0415 - as above
    from apps.web.pages.sessions import MOST_SESSIONS  # noqa: PLC0415
    from apps.web.telemetry import serve_metrics  # noqa: PLC0415
    from core.memory import keep_one_arena  # noqa: PLC0415

    keep_one_arena()
    host = options.host.strip("[]") if options.host else None
    listens_on = host or os.environ.get("GRADIO_SERVER_NAME") or OWN_HOSTS[0]
    shared = _prepared(blocks, environment, suite, options.mcp, listens_on)
    if host:
        _require_own_address("--host", host)
    _bypass_proxies(host)
    answers = threading.Event()
    if suite and first and ON_ZERO_GPU:
        # Weights go with each process that gets a GPU, if this thread has placed them.
        suite.load_now(first)
    elif suite and first:
        suite.load_in_background(first, answers.wait)  # or the page would wait for it
    try:
        _, address, _ = blocks.launch(
            server_name=f"[{host}]" if host and ":" in host else host,  # as in a URL
            server_port=options.port,
            strict_cors=True,
            share=False,
            state_session_capacity=MOST_SESSIONS,
            prevent_thread_lock=True,
            **shared,
        )
    except OSError as error:
        if options.port is not None and "empty port" in str(error):
            sys.exit(f"Port {options.port} is in use; choose another with --port.")
        sys.exit(f"The server could not start: {error}")
    answers.set()
    if environment.metrics_port:
        folders = [upload_folder(), *filter(None, [environment.output])]
        serve_metrics(environment.metrics_port, lambda: len(blocks._queue), folders)
    if block:
        threading.Thread(target=load_torchvision, name="torchvision", daemon=True).start()
        _serve_until_stopped(blocks)
    return address


def mounted(blocks: "gr.Blocks", environment: Environment, suite: "Suite") -> "FastAPI":
    """Return an ASGI app with the pages as `launch` serves them, for another server."""
    import gradio as gr  # noqa: PLC0415 - as above
    from fastapi import FastAPI  # noqa: PLC0415

    return gr.mount_gradio_app(FastAPI(), blocks, "", **_prepared(blocks, environment, suite))


def _prepared(
    blocks: "gr.Blocks",
    environment: Environment,
    suite: "Suite | None",
    mcp: bool = False,
    listens_on: str = "",
) -> dict[str, Any]:
    """Give pages their queue and limits; return the options of whatever serves them."""
    from fastapi.middleware import Middleware  # noqa: PLC0415 - as above

    from apps.web import health  # noqa: PLC0415
    from apps.web.files import LARGEST_UPLOAD  # noqa: PLC0415
    from apps.web.pages import first_paint, sessions  # noqa: PLC0415
    from apps.web.pages.calls import REFUSALS  # noqa: PLC0415
    from apps.web.pages.visitors import limit_visitors  # noqa: PLC0415
    from apps.web.pages.widgets import PICTURES, TEST_IMAGES  # noqa: PLC0415
    from apps.web.telemetry import set_up_logging  # noqa: PLC0415

    first_paint.install()
    sessions.install(blocks)
    if mcp:
        from apps.web.pages import mcp_server  # noqa: PLC0415

        mcp_server.install()
    set_up_logging(environment.log)
    if suite and (note := suite.store.safety_note()):
        log.warning("%s", note)
    # Closed: a call that is posted to its own address would pass by the queue and its limits.
    blocks.queue(max_size=environment.max_queue, api_open=False)
    limit_visitors(blocks, environment.requests.max_per_visitor)
    hosts = answered_names(environment.hosts, listens_on)
    if os.environ.get("SPACE_ID"):  # whose only way in is its proxy, which says who asks
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")
    return {
        "mcp_server": mcp,
        "theme": theme(),
        "css_paths": [HTML / "page.css"],
        "max_file_size": LARGEST_UPLOAD,
        "allowed_paths": [str(TEST_IMAGES), str(PICTURES)],
        "enable_monitoring": False,
        "show_error": False,
        "ssr_mode": False,
        "run_history": False,
        "footer_links": ["api", "settings"],
        "app_kwargs": {
            "exception_handlers": REFUSALS,
            "routes": health.routes(lambda: _hindrance(blocks, environment, suite)),
            "middleware": [] if hosts is None else [Middleware(AllowedHosts, hosts)],
            "lifespan": lambda _: sweeping(lambda: _tidy(blocks, environment)),
        },
    }


def _hindrance(blocks: "gr.Blocks", environment: Environment, suite: "Suite | None") -> str:
    """Return why a request would be refused, or wait for the model, right now; "" if it is not."""
    if getattr(blocks, "is_closing", False):
        return "The server is stopping."
    waiting = len(blocks._queue)
    if waiting >= environment.max_queue:
        return f"{waiting} requests are waiting, as many as may."
    return suite.hindrance() if suite else ""


def _serve_until_stopped(blocks: "gr.Blocks") -> None:
    """Wait for SIGTERM or Ctrl+C; then refuse what is new, and end when what runs is finished."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        if asked.is_set():
            os._exit(1)  # asked twice: files are written whole, so none can break
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    while not asked.wait(0.5):  # without a limit, Windows would not hear Ctrl+C
        pass
    blocks.is_closing = True  # type: ignore[attr-defined] # CallableBlocks refuses
    was_busy = False
    while blocks._queue.get_active_worker_count():
        if not was_busy:
            log.info("Finishing what runs, and refusing what is new; ask again to stop at once.")
        was_busy = True
        time.sleep(0.1)
    if was_busy:
        _wait_for_quiet(blocks)
    blocks.close(verbose=False)


def _wait_for_quiet(blocks: "gr.Blocks") -> None:
    """Wait until there was no request for FETCHING_S, or MOST_FETCHING_S are over."""
    end = time.monotonic() + MOST_FETCHING_S
    served, last = blocks.server.server_state.total_requests, time.monotonic()
    while time.monotonic() < min(end, last + FETCHING_S):
        time.sleep(0.1)
        if blocks.server.server_state.total_requests != served:
            served, last = blocks.server.server_state.total_requests, time.monotonic()


def _tidy(blocks: "gr.Blocks", environment: Environment) -> None:
    """Remove old uploads and results and what was cut off in the operator's folder; free memory."""
    from apps.web.pages.sessions import drop_old  # noqa: PLC0415 - as above
    from core.memory import release_freed_memory  # noqa: PLC0415

    if environment.output:
        remove_partial_copies(environment.output)
    if environment.own:
        kept = (getattr(block, "keep_in_cache", ()) for block in blocks.blocks.values())
        environment.own.sweep(environment.limits, {Path(file) for files in kept for file in files})
    for noted in blocks.temp_file_sets:  # for Gradio's own cleaner, which is off
        noted.clear()
    drop_old(blocks)
    release_freed_memory()


def theme() -> "gr.themes.Base":
    """Return the theme: system fonts (nothing is fetched), neutral colours, one accent."""
    import gradio as gr  # noqa: PLC0415

    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        radius_size="md",
        font=["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
    ).set(
        body_background_fill="#f5f7f8",
        body_background_fill_dark="#0f1418",
        block_background_fill="#ffffff",
        block_background_fill_dark="#171e24",
        block_border_width="1px",
        block_border_color="#dfe5ea",
        block_border_color_dark="#2a343d",
        block_shadow="none",
        # Contrast as WCAG AA asks: 4.5 : 1 for text, 3 : 1 for what is operated.
        body_text_color_subdued="#52606d",
        body_text_color_subdued_dark="#a3b0bb",
        block_title_text_color="#3d4b58",
        block_title_text_color_dark="#d5dde4",
        block_label_text_color="#475569",
        block_label_text_color_dark="#d5dde4",
        input_placeholder_color="#52606d",
        input_placeholder_color_dark="#bcc7d0",
        checkbox_border_color="#64748b",
        checkbox_border_color_dark="#8b98a5",
        color_accent="#0f766e",
        slider_color="#0f766e",
        slider_color_dark="#2dd4bf",
        block_label_background_fill="#ffffff",
        block_label_background_fill_dark="#171e24",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e",
        button_primary_background_fill_hover_dark="#14857c",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
    )
