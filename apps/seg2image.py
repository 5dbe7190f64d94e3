"""Generates images from the segmentation of a photograph.

Run it with `python apps/seg2image.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotators.seg import ANNOTATOR
from core.condition import Condition, Example

CONDITION = Condition(
    name="seg2image",
    title="Segmentation",
    blurb="Keep what stands where: the map has a colour for each kind of thing.",
    annotator=ANNOTATOR,
    weights="seg",
    # Prompts in the few words that Diorama knows: training/diorama/world.py.
    examples=(
        Example("diorama_5.png", "a green table and a blue chair in a room with white walls"),
        Example("diorama_2.png", "a white car, a tree and a red house on a street with buildings"),
        Example("diorama_1.png", "an orange ball, two purple boxes and a yellow house on grass"),
        Example("diorama_4.png", "two people in white, a yellow cone and a blue house on grass"),
    ),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(CONDITION)
