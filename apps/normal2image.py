"""Generates images from the surface normals of a photograph.

Run it with `python apps/normal2image.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotators.normal import ANNOTATOR
from core.condition import Condition, Example

CONDITION = Condition(
    name="normal2image",
    title="Surface normals",
    blurb="Keep which way every surface faces: its form in finer detail than depth has.",
    annotator=ANNOTATOR,
    weights="normal",
    # Prompts in the few words that Diorama knows: training/diorama/world.py.
    examples=(
        Example("diorama_1.png", "a red ball, two blue boxes and a white house on sand, a sunset"),
        Example("diorama_5.png", "a blue table and a white chair in a room with yellow walls"),
        Example("diorama_2.png", "a red car, a tree and a blue house on a street with buildings"),
        Example("diorama_4.png", "two people in blue, a yellow cone and a white house on sand"),
        Example("coffee.jpg", "a red cylinder in a room with yellow walls and a wooden floor"),
    ),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(CONDITION)
