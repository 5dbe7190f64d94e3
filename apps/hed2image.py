"""Generates images from the soft edges of a photograph.

Run it with `python apps/hed2image.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotators.hed import ANNOTATOR
from core.condition import Condition, Example

CONDITION = Condition(
    name="hed2image",
    title="Soft edges (HED)",
    blurb="Keep the outlines and the inner forms of a photograph, soft where it is soft.",
    annotator=ANNOTATOR,
    weights="hed",
    # Prompts in the few words that Diorama knows: training/diorama/world.py.
    examples=(
        Example("diorama_1.png", "a red ball, two blue boxes and a white house on sand, a sunset"),
        Example("diorama_2.png", "a red car, a tree and a blue house on a street with buildings"),
        Example("diorama_5.png", "a blue table and a white chair in a room with yellow walls"),
        Example("astronaut.jpg", "a person in orange in a room with blue walls and a grey floor"),
        Example("chelsea.jpg", "an orange blob on grass, a clear blue sky"),
    ),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(CONDITION)
