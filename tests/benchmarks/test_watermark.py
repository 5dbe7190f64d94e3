"""The watermark's benchmark: what happens to a picture, and a whole run where the library is."""

import json

import numpy as np
import pytest

from benchmarks import watermark
from benchmarks.watermark import CUT_PX, FATES, main
from core.watermark import is_here

PICTURE = np.arange(64 * 96 * 3, dtype=np.uint32).reshape(64, 96, 3).astype(np.uint8)


def test_each_fate_does_what_it_says():
    sizes = {name: change(PICTURE).shape[:2] for name, change in FATES.items()}
    assert sizes == {
        "as it is": (64, 96),
        "JPEG, quality 75": (64, 96),
        "half its size": (32, 48),
        "half its size, then JPEG 75": (32, 48),
        f"cut by {CUT_PX} pixels": (64 - CUT_PX, 96 - CUT_PX),
    }
    assert np.array_equal(FATES["as it is"](PICTURE), PICTURE)
    assert not np.array_equal(FATES["JPEG, quality 75"](PICTURE), PICTURE)


def test_without_the_library_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(watermark, "is_here", lambda: False)
    with pytest.raises(SystemExit):
        main([])
    assert "pip install --no-deps -r requirements-watermark.txt" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not is_here(), reason="pip install --no-deps -r requirements-watermark.txt")
def test_a_run_counts_what_is_found(capsys):
    main(["--conditions", "canny", "--scenes", "1", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = {name: one["pictures"] for name, one in result["found"].items()}
    assert found["as it is"] == found["JPEG, quality 75"] == 1 and found["without it"] == 0
    assert 30 < result["psnr"]["lowest"] <= result["psnr"]["mean"] < 60
    assert abs(result["score"] - result["marked_score"]) < 10
