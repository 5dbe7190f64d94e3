"""Generates images from the straight lines of a photograph.

Run it with `python apps/mlsd2image.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotators.mlsd import ANNOTATOR
from core.condition import Condition, Example

CONDITION = Condition(
    name="mlsd2image",
    title="Straight lines (MLSD)",
    blurb="Keep the straight lines of a room, a street or a building, and nothing else.",
    annotator=ANNOTATOR,
    weights="mlsd",
    # Prompts in the few words that Diorama knows: training/diorama/world.py.
    examples=(
        Example("diorama_2.png", "a red car, a tree and a blue house on a street with buildings"),
        Example("diorama_1.png", "a red ball, two blue boxes and a white house on sand, a sunset"),
    ),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(CONDITION)
