"""Every picture says that a machine made it, other readers agree, and no hostile XMP does harm."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.metadata import read_settings, save_png
from core.png_chunks import XMP_KEYWORD, write_png
from core.provenance import (
    COMPOSITE,
    EDITED,
    GENERATED,
    VOCABULARY,
    Claims,
    carried,
    main,
    mark,
    packet,
    read_claims,
)
from core.request import GenerationRequest

PICTURE = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
HEAD = '<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
IPTC = 'xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'


def png(texts):
    file = io.BytesIO()
    write_png(file, PICTURE, texts)
    return file.getvalue()


def in_format(name, text):
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, name, xmp=text.encode())
    return file.getvalue()


def made(pipeline, condition, image, **settings):
    settings = {"steps": 2, "image_resolution": 256, "seed": 3, "model": "diorama"} | settings
    result = pipeline.generate(GenerationRequest.single(condition, image, **settings))
    file = io.BytesIO()
    save_png(file, result.images[0], result, 0)
    return file.getvalue()


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, GENERATED),
        ({"denoising_strength": 0.5}, EDITED),
        ({"denoising_strength": 0.0}, EDITED),
        ({"mask": np.eye(256, dtype=bool)}, EDITED),
    ],
)
def test_every_picture_says_what_it_is_beside_its_settings(
    pipeline, condition, image, changes, kind
):
    file = made(pipeline, condition, image, prompt="a ball", **changes)
    assert read_claims(file) == Claims((kind,), ("fake",), ("ControlLoop",))
    assert read_settings(file, condition)[0]["prompt"] == "a ball"


@pytest.mark.parametrize("kind", [GENERATED, EDITED, COMPOSITE])
def test_the_formats_that_browsers_show_say_the_same(kind):
    wanted = Claims((kind,), ("a <b> & “c”",), ("ControlLoop",))
    text = packet(kind, "a <b> & “c”")
    for data in (png({XMP_KEYWORD: text}), *(in_format(n, text) for n in ("JPEG", "WEBP", "AVIF"))):
        assert read_claims(data) == wanted


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD}{IPTC}><i:DigitalSourceType>{VOCABULARY}{EDITED}</i:DigitalSourceType></r:RDF>",
        f'{HEAD}{IPTC}><i:DigitalSourceType r:resource="{VOCABULARY}{EDITED}"/></r:RDF>',
        f"{HEAD}{IPTC}><i:DigitalSourceType><r:Bag><r:li>{VOCABULARY}{EDITED}</r:li></r:Bag>"
        "</i:DigitalSourceType></r:RDF>",
    ],
)
def test_others_write_the_property_in_other_forms(text):
    assert read_claims(png({XMP_KEYWORD: text})).source_types == (EDITED,)


def test_a_copy_claims_what_the_picture_claims_and_nothing_else():
    private = packet(EDITED, "theirs", "GIMP").replace("<rdf:Descr", "<exif:GPS>1</exif:GPS><rdf:D")
    private = private.replace("<rdf:Desc", "<x:GPS>47.1</x:GPS><rdf:Desc")
    copy = png(carried(in_format("JPEG", packet(EDITED, "theirs", "GIMP"))))
    assert read_claims(copy) == Claims((EDITED,), ("theirs",), ("GIMP",))
    assert carried(png({})) == {}
    assert b"47.1" not in png(carried(png({XMP_KEYWORD: private})))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<",
        "no XML",
        '<!DOCTYPE r [<!ENTITY e SYSTEM "file:///etc/hostname">]>'
        f"{HEAD}{IPTC}><i:DigitalSourceType>&e;</i:DigitalSourceType></r:RDF>",
        '<!DOCTYPE r [<!ENTITY a "x"><!ENTITY b "&a;&a;">]>'
        f"{HEAD}{IPTC}><i:DigitalSourceType>&b;</i:DigitalSourceType></r:RDF>",
        "<a>" * 60_000,
        "<a>" * 20_000 + "</a>" * 20_000,
        f'{HEAD}{IPTC} i:DigitalSourceType="{"x" * 300_000}"/>',
        f'{HEAD}xmlns:i="http://example.org/" i:DigitalSourceType="{VOCABULARY}{EDITED}"/>',
    ],
    ids=range(9),
)
def test_hostile_xmp_claims_nothing(text):
    for data in (png({XMP_KEYWORD: text}), in_format("WEBP", text)):
        assert read_claims(data).source_types == ()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.sampled_from([GENERATED, EDITED, COMPOSITE]))
def test_any_model_name_is_told_and_changes_nothing_else(name, kind):
    claims = read_claims(png(mark(kind, name)))
    assert claims.source_types == (kind,) and claims.tools == ("ControlLoop",)
    if name.isprintable() and name.strip() == name:
        assert claims.systems == ((name,) if name else ())


def test_the_command_says_what_files_claim(tmp_path, capsys):
    (tmp_path / "made.png").write_bytes(png(mark(GENERATED, "mo\x1bdel")))
    (tmp_path / "photo.jpg").write_bytes(in_format("JPEG", ""))
    (tmp_path / "text.png").write_text("none")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / name) for name in ("made.png", "photo.jpg", "text.png")])
    said = capsys.readouterr().out
    assert ended.value.code == 2
    assert "trainedAlgorithmicMedia (made by a generative model)" in said
    assert "It claims no digital source type" in said and "not an image we can read" in said
    assert "\x1b" not in said


@pytest.mark.slow
def test_the_command_runs_as_documented(tmp_path):
    (tmp_path / "made.png").write_bytes(png(mark(EDITED)))
    done = subprocess.run(
        [sys.executable, "-m", "core.provenance", str(tmp_path / "made.png")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and EDITED in done.stdout, done.stderr


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_exiftool_reads_the_same(name, tmp_path, pipeline, condition, image):
    file = tmp_path / f"made.{name.lower()}"
    if name == "PNG":
        file.write_bytes(made(pipeline, condition, image, denoising_strength=0.5))
    else:
        file.write_bytes(in_format(name, packet(EDITED, "fake")))
    done = subprocess.run(
        ["exiftool", "-j", "-n", "-G1", "-XMP:all", "-Warning", str(file)],
        capture_output=True,
        text=True,
        check=True,
    )
    (said,) = json.loads(done.stdout)
    assert said["XMP-iptcExt:DigitalSourceType"] == VOCABULARY + EDITED
    assert said["XMP-xmp:CreatorTool"] == "ControlLoop"
    assert not any("Warning" in key for key in said), said
