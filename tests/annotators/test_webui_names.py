"""The names of our preprocessors in sd-webui-controlnet."""

import pytest

import apps
from core.condition import ALREADY_A_MAP
from core.params import settings_of
from core.webui import controls_from

LABELS = {
    "none", "invert (from white bg & black line)", "canny", "depth_anything", "depth_anything_v2",
    "depth_hand_refiner", "depth_leres", "depth_leres++", "depth_midas", "depth_zoe",
    "dw_openpose_full", "lineart_anime", "lineart_anime_denoise", "lineart_coarse",
    "lineart_realistic", "lineart_standard (from white bg & black line)", "mlsd", "normal_bae",
    "normal_dsine", "normal_midas", "openpose", "openpose_face", "openpose_faceonly",
    "openpose_full", "openpose_hand", "scribble_hed", "scribble_pidinet", "scribble_xdog",
    "seg_ofade20k", "seg_ofcoco", "seg_ufade20k", "softedge_hed", "softedge_hedsafe",
    "softedge_pidinet", "softedge_pidisafe", "softedge_teed", "threshold",
}  # fmt: skip
"""Those of its preprocessors that draw maps of our kinds: its own labels, so that a written unit is
taken; another value costs it the whole unit."""


@pytest.mark.parametrize("condition", apps.conditions(), ids=lambda one: one.name)
def test_every_preprocessor_has_a_name_that_is_known_there(condition):
    annotator = condition.annotator
    names = annotator.webui
    ours = {one.name for one in annotator.preprocessors}
    for name in ours:
        assert names.module_of(name) in LABELS
        # A kind of map that it lacks has no names at all.
        assert (names.module_of(name) != "none") == bool(names.modules)
    assert names.module_of(ALREADY_A_MAP) == "none"
    assert set(names.modules.values()) <= ours
    assert all(name == name.lower() for name in (*names.modules, *names.models))
    assert set(names.thresholds) <= settings_of(annotator.params).keys()


@pytest.mark.parametrize(
    ("module", "model", "name", "preprocessor"),
    [
        ("canny", "control_v11p_sd15_canny [d14c016b]", "canny2image", "Canny"),
        ("none", "control_canny-fp16 [e3fe7712]", "canny2image", ALREADY_A_MAP),
        ("depth", "control_depth-fp16 [400750f6]", "depth2image", "MiDaS"),
        ("softedge_pidinet", "control_v11p_sd15_softedge [a8575a2a]", "hed2image", "PiDiNet"),
        ("hed", "control_hed-fp16 [13fee50b]", "hed2image", "HED"),
        ("scribble_hed", "control_v11p_sd15_scribble [d4ba51ff]", "fake_scribble2image", "HED"),
        ("invert (from white bg & black line)", "control_v11p_sd15_scribble [d4ba51ff]",
         "scribble2image", "Drawing"),
        ("lineart_anime", "control_v11p_sd15s2_lineart_anime [3825e83e]", "lineart2image",
         "Lineart anime"),
        ("mlsd", "control_v11p_sd15_mlsd [aca30ff0]", "mlsd2image", "MLSD"),
        ("normal_map", "control_normal-fp16 [63f96f7c]", "normal2image", "From MiDaS depth"),
        ("openpose_full", "control_v11p_sd15_openpose [cab727d4]", "pose2image",
         "OpenPose with hands and face"),
        ("seg_ofade20k", "control_v11p_sd15_seg [e1f51eb9]", "seg2image", "SegFormer"),
        ("openpose", "None", "pose2image", "OpenPose"),
    ],
)  # fmt: skip
def test_units_of_published_pictures_find_their_condition(module, model, name, preprocessor):
    conditions = {one.name: one for one in apps.conditions() if one.input != "canvas"}
    unit = f"Module: {module}, Model: {model}, Weight: 0.5"
    found, notes = controls_from(f'p\nSteps: 4, ControlNet 0: "{unit}"', conditions)
    assert [(one, asked["preprocessor"]) for one, asked in found] == [(name, preprocessor)]
    assert notes == []
