"""Any exception becomes one sentence, and only a bug leaves a traceback in the log."""

import errno
import logging

import pytest

from apps.web.jobs.errors import sentence_of
from core.errors import BadInput


def _raised(error: Exception) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_a_mistake_is_its_own_sentence(caplog: pytest.LogCaptureFixture) -> None:
    assert sentence_of(BadInput("Choose a picture.")) == "Choose a picture."
    assert caplog.text == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_bug(number: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        sentence = sentence_of(_raised(OSError(number, "No space left", "/srv/gradio/x.png")))
    assert sentence.startswith("The server's disk is full") and "/srv" not in sentence
    assert "/srv/gradio/x.png" in caplog.text and "Traceback" not in caplog.text


def test_memory_that_ran_out_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert "too little memory" in sentence_of(_raised(MemoryError("12 GB")))
    assert "12 GB" in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize("error", [KeyError("x"), OSError(errno.ENOENT, "gone", "/srv/secret")])
def test_a_bug_is_logged_under_its_id(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        sentence = sentence_of(_raised(error))
    error_id = sentence.rstrip(".").rpartition(" ")[2]
    assert "secret" not in sentence and error_id in caplog.text and "Traceback" in caplog.text
