"""Data URLs, as programs write them."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.web.jobs import request
from apps.web.jobs.request import bytes_of_data_url
from core.errors import BadInput


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=300),
    head=st.sampled_from(
        ["data:image/png", "data:", "DATA:image/PNG;charset=utf-8", "data:application/octet-stream"]
    ),
    wrap=st.sampled_from([0, 1, 76]),
    padded=st.booleans(),
    percent=st.booleans(),
)
def test_every_way_to_write_base64_gives_the_same_bytes(data, head, wrap, padded, percent):
    text = base64.b64encode(data).decode()
    text = text if padded else text.rstrip("=")
    if percent:
        text = text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    elif wrap:
        text = "\r\n".join(text[at : at + wrap] for at in range(0, len(text), wrap))
    assert bytes_of_data_url(f"{head};base64,{text}") == data


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80), st.sampled_from(["", "data:;base64,", "data:image/png,"]))
def test_any_text_is_bytes_or_one_sentence(text, before):
    try:
        assert isinstance(bytes_of_data_url(before + text), bytes)
    except BadInput as error:
        assert str(error).endswith(".")


@pytest.mark.parametrize("larger", [0, 1])
def test_a_data_url_may_hold_what_an_upload_may(monkeypatch, larger):
    monkeypatch.setattr(request, "LARGEST_UPLOAD", 100)
    url = "data:;base64," + base64.b64encode(bytes(100 + larger)).decode()
    if not larger:
        assert len(bytes_of_data_url(url)) == 100
        return
    with pytest.raises(BadInput, match="more than 30 MB"):
        bytes_of_data_url(url)


def test_a_longer_text_is_not_decoded_at_all(monkeypatch):
    monkeypatch.setattr(request, "LONGEST_DATA_URL", 10)
    monkeypatch.setattr(base64, "b64decode", None)
    with pytest.raises(BadInput, match="more than 30 MB"):
        bytes_of_data_url("data:;base64," + "A" * 12)
