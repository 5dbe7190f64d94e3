"""What a server started without options allows, and what a start refuses: the safe defaults."""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import apps
from apps.web import janitor
from apps.web.files import upload_folder
from apps.web.html.results import retention
from apps.web.janitor import Limits
from apps.web.serve import GRADIO_NUMBERS, Environment, launch
from apps.web.suite import Suite

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def blocks() -> gr.Blocks:
    """A page with nothing to compute."""
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Textbox(label="Nothing")
    return page


@pytest.fixture(scope="module")
def client(blocks: gr.Blocks) -> Iterator[httpx.Client]:
    """A client of that page, served as the apps are, without any option."""
    options = argparse.Namespace(host=None, port=None, mcp=False)
    address = launch(blocks, Environment(max_queue=7, output=None), options, block=False)
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
        yield client
    blocks.close(verbose=False)


def test_only_this_machine_is_served(client: httpx.Client, blocks: gr.Blocks) -> None:
    assert str(client.base_url).startswith("http://127.0.0.1:")
    assert blocks.share is False


def test_the_queue_is_as_long_as_the_environment_says(
    client: httpx.Client, blocks: gr.Blocks
) -> None:
    assert blocks._queue.max_size == 7


@pytest.mark.parametrize("path", ["monitoring", "monitoring/summary"])
def test_nobody_is_told_who_uses_the_server(path: str, client: httpx.Client) -> None:
    assert client.get(path).status_code == 403


def test_a_file_over_the_limit_is_refused(client: httpx.Client) -> None:
    for megabytes, status in ((1, 200), (31, 413)):
        files = {"files": ("picture.png", bytes(megabytes * 2**20))}
        assert client.post("gradio_api/upload", files=files).status_code == status


def test_only_the_examples_can_be_read(client: httpx.Client, blocks: gr.Blocks) -> None:
    assert blocks.allowed_paths == [str(ROOT / "test_imgs"), str(ROOT / "pictures")]
    files = (("test_imgs/README.md", 200), ("pictures/page.jpg", 200), ("launch.py", 403))
    for file, status in files:
        assert client.get(f"gradio_api/file={ROOT / file}").status_code == status


def test_another_sites_page_may_not_ask(client: httpx.Client) -> None:
    headers = {"origin": "null"}  # what a page in a sandboxed frame sends
    assert "access-control-allow-origin" not in client.get("config", headers=headers).headers


@pytest.mark.parametrize("name", apps.names())
def test_every_page_says_how_long_pictures_are_kept(
    name: str, suite: Suite, page_of: Callable[[str], Any]
) -> None:
    texts = [str(getattr(block, "value", "")) for block in page_of(name).blocks.values()]
    (note,) = [text for text in texts if "removed from this server" in text]
    assert note == retention(suite.kept_hours, is_copied=False)


@pytest.mark.parametrize(
    ("hours", "told"), [(1, "1 hour"), (24, "1 day"), (36, "36 hours"), (48, "2 days")]
)
def test_what_is_kept_is_told_in_words(hours: int, told: str) -> None:
    assert f"after {told}, or sooner" in retention(hours, is_copied=False)
    assert "also keeps a copy of every generated image" in retention(hours, is_copied=True)
    assert "copy" not in retention(hours, is_copied=False)


@pytest.mark.slow
def test_a_server_removes_old_files_and_keeps_its_examples(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio's own cleaner is off, so that a restart, too, finds what visitors have made."""
    from apps.web.site import build_app

    environment = Environment.read({"GRADIO_TEMP_DIR": str(tmp_path)})
    assert environment.own
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(environment.own.path))
    page = build_app(apps.find("annotator"), suite)
    assert page.delete_cache is None
    for block in page.blocks.values():  # read when Gradio was imported
        for file in getattr(block, "keep_in_cache", ()):
            assert Path(file).is_file()
    old = environment.own.path / "controlloop-old"
    old.mkdir()
    page.upload_file_set.add(str(old))
    clock = time.time
    monkeypatch.setattr(janitor.time, "time", lambda: clock() + 25 * 3600)
    options = argparse.Namespace(host=None, port=None, mcp=False)
    launch(page, environment, options, block=False)
    try:
        end = time.monotonic() + 60
        while old.exists() or page.upload_file_set:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        page.close(verbose=False)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../x.png", "x.png"),
        ("C:\\x.png", "x.png"),
        ("CON.png", "_CON.png"),
        ("picture 😀.png", "picture 😀.png"),
        ("a" * 300 + ".png", ""),
        ("a\0b.png", ""),
        ('"><img src=x onerror=alert(1)>.png', ""),
    ],
)
def test_an_upload_has_a_safe_name_in_the_folder_of_uploads(
    name: str, kept: str, client: httpx.Client
) -> None:
    answer = client.post("gradio_api/upload", files={"files": (name, b"a picture")})
    (path,) = map(Path, answer.json())
    assert path.resolve() == path and path.is_relative_to(upload_folder())
    assert path.read_bytes() == b"a picture" and len(path.name) < 256
    assert path.name == kept or (not kept and not set(path.name) & set("<>\0/\\"))


@pytest.mark.parametrize("kind", ["svg", "html", "xhtml", "xml", "js", "pdf"])
def test_what_could_run_in_a_browser_is_not_opened_there(kind: str, client: httpx.Client) -> None:
    content = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    sent = {"files": (f"x.{kind}", content, "image/svg+xml")}
    (path,) = client.post("gradio_api/upload", files=sent).json()
    headers = client.get(f"gradio_api/file={path}").headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GRADIO_SERVER_PORT", "abc"),
        ("GRADIO_SERVER_PORT", ""),
        ("GRADIO_SERVER_PORT", "70000"),
        ("GRADIO_NUM_PORTS", "many"),
        ("GRADIO_NUM_WORKERS", "two"),
        ("CONTROLLOOP_FILE_NAMES", "no"),
        ("GRADIO_NODE_SERVER_PORT", "x"),
        ("GRADIO_DEFAULT_CONCURRENCY_LIMIT", "all"),
        ("GRADIO_ANALYTICS_MAX_EVENTS", ""),
        ("GRADIO_DEBUG", "yes"),
        ("GRADIO_ROOT_PATH", "site"),
        ("GRADIO_SERVER_NAME", "203.0.113.7"),
        ("GRADIO_SERVER_NAME", "::1"),
    ],
)
def test_a_malformed_variable_of_gradio_stops_the_start_with_its_name(
    name: str, value: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        Environment.read({name: value})
    message = str(stopped.value)
    assert message.startswith(f"{name} is {value!r}") and "\n" not in message


def test_every_number_that_gradio_reads_is_checked() -> None:
    """Those that would end the start with a traceback, looked up in Gradio's own source."""
    read = re.compile(r"int\(\s*os\.(?:getenv|environ\.get)\(\s*[\"'](GRADIO_\w+)")
    folder = Path(gr.__file__).parent
    names = {name for file in folder.glob("*.py") for name in read.findall(file.read_text("utf-8"))}
    assert "GRADIO_SERVER_PORT" in names and names <= GRADIO_NUMBERS.keys()


def test_variables_of_gradio_that_fit_are_taken() -> None:
    fitting = {name: str(least) for name, (least, _) in GRADIO_NUMBERS.items()}
    others = {"GRADIO_ROOT_PATH": "/site", "GRADIO_SERVER_NAME": "127.0.0.1"}
    assert Environment.read(fitting | others).output is None


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid", "256.1.1.1", "a" * 300])
def test_a_host_that_is_not_this_machines_is_named(host: str, blocks: gr.Blocks) -> None:
    options = argparse.Namespace(host=host, port=None, mcp=False)
    with pytest.raises(SystemExit) as stopped:
        launch(blocks, Environment(max_queue=1, output=None), options, block=False)
    message = str(stopped.value)
    assert message.startswith(f"--host is {host!r}, which is no address of this machine")
    assert "\n" not in message and "in use" not in message


@pytest.mark.slow
def test_behind_a_proxys_path_every_address_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy takes the path away again, so a request that came through it looks like these."""
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/studio")
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Textbox(label="Nothing")
    options = argparse.Namespace(host=None, port=None, mcp=False)
    launch(page, Environment(max_queue=1, output=None), options, block=False)
    asked = {"headers": {"x-forwarded-host": "example.org", "x-forwarded-proto": "https"}}
    with httpx.Client(base_url=page.local_url, trust_env=False, timeout=60, **asked) as client:
        assert client.get("config").json()["root"] == "https://example.org/studio"
        sent = client.post("gradio_api/upload", files={"files": ("x.png", b"x")})
        assert client.get(f"gradio_api/file={sent.json()[0]}").content == b"x"
        assert client.get("healthz").status_code == 200
    page.close(verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["::1", "[::1]", "localhost"])
def test_an_address_of_this_machine_is_served_however_it_is_written(host: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Textbox(label="Nothing")
    options = argparse.Namespace(host=host, port=None, mcp=False)
    address = launch(page, Environment(max_queue=1, output=None), options, block=False)
    assert httpx.get(address, trust_env=False, timeout=60).status_code == 200
    page.close(verbose=False)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs the signals of Unix")
def test_asked_to_stop_a_server_finishes_what_runs_and_refuses_what_is_new(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--only", "canny2image", "--port", str(port)]
    command = [sys.executable, str(ROOT / "launch.py"), *options]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path), "CONTROLLOOP_MODEL": "diorama"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address)
            client = Client(address, verbose=False, download_files=tmp_path / "downloads")
            given = {"image": handle_file(ROOT / "test_imgs" / "coffee.jpg"), "num_samples": 8}
            running = client.submit(**given, steps=40, api_name="/canny2image")
            end = time.monotonic() + 120
            while not any(told[3].get("step") for told in running.outputs()):
                assert time.monotonic() < end and not running.done()
                time.sleep(0.05)
            server.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(AppError, match="about to restart"):
                client.predict(**given, api_name="/canny2image")
            _, images, _, report = running.result(timeout=120)
            assert len(images) == len(report["seeds"]) == 8
            for image in images:
                Image.open(image).load()
            assert server.wait(60) == 0
        finally:
            server.kill()


ENDLESS_RUN = """
import argparse, sys, threading
import gradio as gr
from apps.web.serve import Environment, launch
with gr.Blocks(analytics_enabled=False) as page:
    work = lambda: [print("at work", flush=True), threading.Event().wait(600)][1:]
    gr.Button().click(work, api_name="run")
launch(page, Environment.read(), argparse.Namespace(host=None, port=int(sys.argv[1]), mcp=False))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs the signals of Unix")
def test_asked_twice_a_server_ends_though_something_runs(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS_RUN, str(port)],
        cwd=ROOT,
        env=os.environ | {"GRADIO_TEMP_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            wait_for(f"http://127.0.0.1:{port}")
            call = f"http://127.0.0.1:{port}/gradio_api/call/run"
            httpx.post(call, json={"data": []}, trust_env=False).raise_for_status()
            assert any("at work" in line for line in server.stdout)
            server.send_signal(signal.SIGINT)
            assert any("Finishing what runs" in line for line in server.stdout)
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 1
        finally:
            server.kill()


def wait_for(address: str) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + 120
    while True:
        try:
            httpx.get(address, trust_env=False).raise_for_status()
        except httpx.HTTPError:
            assert time.monotonic() < end
            time.sleep(0.2)
        else:
            return


def test_a_malformed_port_is_one_line_and_no_traceback() -> None:
    environment = {**os.environ, "GRADIO_SERVER_PORT": "abc"}
    command = [sys.executable, str(ROOT / "launch.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("GRADIO_SERVER_PORT") and done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are always UTF-8 there")
def test_a_locale_in_which_uploads_cannot_have_their_names_is_one_line() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    environment = kept | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, str(ROOT / "launch.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.endswith("set PYTHONUTF8=1.\n")
    assert done.stderr.startswith("Files' names are 'ascii'") and done.stderr.count("\n") == 1


def test_a_port_in_use_is_one_line(client: httpx.Client, blocks: gr.Blocks) -> None:
    port = client.base_url.port
    options = argparse.Namespace(host=None, port=port, mcp=False)
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Textbox(label="Nothing")
    with pytest.raises(SystemExit) as stopped:
        launch(page, Environment(max_queue=1, output=None), options, block=False)
    assert str(stopped.value) == f"Port {port} is in use; choose another with --port."


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
def test_a_folder_that_takes_no_file_stops_the_start() -> None:
    """Nobody can create a file in /proc, not even root, whom a folder's mode does not stop."""
    with pytest.raises(SystemExit, match="CONTROLLOOP_OUTPUT is '/proc'; it must be a folder"):
        Environment.read({"CONTROLLOOP_OUTPUT": "/proc"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file: no folder can be made below it, not even by root."""
    (tmp_path / "file").touch()
    return tmp_path / "file"


def test_a_folder_for_uploads_that_takes_no_file_stops_the_start(file: Path) -> None:
    given = str(file / "gradio")
    with pytest.raises(SystemExit) as stopped:
        Environment.read({"GRADIO_TEMP_DIR": given})
    message = f"GRADIO_TEMP_DIR is {given!r}; it must be a folder that can be written to"
    assert str(stopped.value).startswith(message) and "\n" not in str(stopped.value)


def _own(variables: dict[str, str]) -> Path:
    own = Environment.read(variables).own
    assert own
    return own.path


def test_each_server_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = Environment.read({})
    assert first.own and first.own.path.is_relative_to(tmp_path) and first.own.path.name == "0"
    assert _own({}).name == "1" and first.own.path.is_dir()
    given = _own({"GRADIO_TEMP_DIR": str(tmp_path / "given")})
    assert given.is_relative_to(tmp_path / "given")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs users with numbers")
@pytest.mark.parametrize("squatted", ["a link", "open to all", "another user's"])
def test_a_folder_that_others_can_change_is_not_used(
    squatted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    user = os.getuid()
    usual = tmp_path / f"controlloop-{user}"
    if squatted == "a link":
        (tmp_path / "theirs").mkdir()
        usual.symlink_to(tmp_path / "theirs")
    else:
        usual.mkdir()
        usual.chmod(0o777 if squatted == "open to all" else 0o700)
    if squatted == "another user's":
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
        usual.rename(tmp_path / f"controlloop-{os.getuid()}")
    own = _own({})
    assert own.parent.parent == tmp_path and own.parent.name.startswith("controlloop-")
    assert own.parent != usual and not list(own.parent.glob("*.png")) and own.is_dir()


@pytest.mark.parametrize("name", ["CONTROLLOOP_RESULTS_HOURS", "CONTROLLOOP_RESULTS_GB"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "a day", "1e3", "99999999"])
def test_a_malformed_limit_stops_the_start_with_its_name(name: str, value: str) -> None:
    with pytest.raises(SystemExit, match=f"^{name} is '{value}'; it must be a whole number"):
        Environment.read({name: value})


def test_the_limits_of_what_is_kept_are_read() -> None:
    assert Environment.read({}).limits == Limits(24, 10)
    read = {"CONTROLLOOP_RESULTS_HOURS": "3", "CONTROLLOOP_RESULTS_GB": "2"}
    assert Environment.read(read).limits == Limits(hours=3, gigabytes=2)


def test_without_any_folder_for_temporary_files_the_start_says_what_to_set(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(file))
    with pytest.raises(
        SystemExit, match=r"^There is no folder for .*: set GRADIO_TEMP_DIR and TMPDIR"
    ):
        Environment.read({})


@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTPS_PROXY", "http://:x"), ("all_proxy", "ftp://proxy"), ("NO_PROXY", "[::1],.corp")],
)
def test_a_proxy_that_cannot_be_used_stops_the_start_with_its_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        Environment.read({})
    assert re.fullmatch(rf"The proxy in .*{name}.* cannot be used: [^\n]+\.", str(stopped.value))


@pytest.mark.slow
def test_behind_a_proxy_the_server_reaches_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("no_proxy", "")  # launch sets both
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Textbox(label="Nothing")
    options = argparse.Namespace(host=None, port=None, mcp=False)
    address = launch(page, Environment(max_queue=1, output=None), options, block=False)
    assert httpx.get(address, trust_env=False, timeout=60).status_code == 200
    assert os.environ["NO_PROXY"].startswith("example.org,127.0.0.1,")
    page.close(verbose=False)


def test_a_folder_is_left_empty_by_the_check(tmp_path: Path) -> None:
    environment = Environment.read({"CONTROLLOOP_OUTPUT": str(tmp_path / "new")})
    assert environment.output == tmp_path / "new" and not list(environment.output.iterdir())
