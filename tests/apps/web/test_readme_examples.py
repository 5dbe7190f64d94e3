"""The README's examples of a call, in Python and in a shell, against a running site."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


def example(language, address):
    """Return the README's block of that language, for the site at this address."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## From a program\n")[2].partition("\n## ")[0]
    (code,) = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert "http://127.0.0.1:7860" in code
    return code.replace("http://127.0.0.1:7860", address.rstrip("/"))


def output(*command):
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python(address):
    code = example("python", address)
    assert re.search(r"^\[\d+\] \[[\d.]+\]$", output(sys.executable, "-c", code), re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_shell(address):
    said = output("bash", "-euo", "pipefail", "-c", example("bash", address))
    assert "event: complete" in said
    assert '"headline"' in said and '"seeds"' in said
