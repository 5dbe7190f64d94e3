"""Generates images from a photograph redrawn as a scribble.

Run it with `python apps/fake_scribble2image.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotators.fake_scribble import ANNOTATOR
from core.condition import Condition, Example

CONDITION = Condition(
    name="fake_scribble2image",
    title="Fake scribbles",
    blurb="Let a photograph be redrawn as a rough scribble, and make a new picture of that.",
    annotator=ANNOTATOR,
    weights="scribble",
    # Prompts in the few words that Diorama knows: training/diorama/world.py.
    examples=(
        Example("diorama_1.png", "a red ball, two blue boxes and a white house on sand, a sunset"),
        Example("diorama_3.png", "a person in purple and a yellow ball on snow, a cloudy sky"),
        Example("diorama_2.png", "a red car, a tree and a blue house on a street with buildings"),
        Example("coffee.jpg", "a red cylinder in a room with yellow walls and a wooden floor"),
        Example("chelsea.jpg", "an orange blob on grass, a clear blue sky"),
    ),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(CONDITION)
