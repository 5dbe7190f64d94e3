#!/usr/bin/env bash
# One would guess: in COCO's keypoint evaluation a detector that did not find a joint writes it as
# 0, 0, 0, and this costs at most that joint.
# pycocotools computes a result's area from the box around all its joints, those at 0, 0 included, so
# a small person at the lower right becomes as large as half the picture. In the scores for medium and
# large people, false detections count only if their area is in the range: with one joint missing, a
# false person of medium size is no longer held against the detector, and AP (medium) doubles.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pycocotools==2.0.11 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import contextlib
import io
from importlib.metadata import version

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

print("pycocotools", version("pycocotools"), "numpy", version("numpy"))
rng = np.random.default_rng(0)
joints = np.column_stack([rng.uniform(400, 450, 17), rng.uniform(300, 360, 17), np.full(17, 2)])
person = {"id": 1, "image_id": 1, "category_id": 1, "keypoints": joints.ravel().tolist()}
person |= {"num_keypoints": 17, "area": 2500.0, "bbox": [400, 300, 50, 60], "iscrowd": 0}
truth = COCO()
truth.dataset = {
    "info": {},
    "images": [{"id": 1, "width": 640, "height": 480}],
    "categories": [{"id": 1, "name": "person"}],
    "annotations": [person],
}


def detected(keypoints, score):
    return {"image_id": 1, "category_id": 1, "keypoints": keypoints.ravel().tolist(), "score": score}


ghost = joints - [200, 200, 0]  # nobody is there
ghost_but_a_joint = ghost.copy()
ghost_but_a_joint[0] = 0
scores = []
for name, false_person in (("whole", ghost), ("a joint missing", ghost_but_a_joint)):
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes([detected(joints, 0.8), detected(false_person, 0.9)])
        evaluation = COCOeval(truth, found, "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    areas = [round(one["area"]) for one in found.anns.values()]
    scores.append((evaluation.stats[0], evaluation.stats[3]))
    print(f"false person {name}: areas {areas}, AP {scores[-1][0]:.2f}, medium {scores[-1][1]:.2f}")
assert np.allclose(scores, [(0.5, 0.5), (0.5, 1.0)], atol=0.01)
PYTHON
# Seen:
# pycocotools 2.0.11 numpy 2.4.6
# false person whole: areas [2710, 2710], AP 0.50, medium 0.50
# false person a joint missing: areas [2710, 39439], AP 0.50, medium 1.00
