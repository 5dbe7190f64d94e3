"""Generates images from a drawing.

Run it with `python apps/scribble2image.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotators.scribble import ANNOTATOR
from core.condition import Condition, Example

CONDITION = Condition(
    name="scribble2image",
    title="Scribbles",
    blurb="Turn a drawing of dark lines on light paper, or light on dark, into a picture.",
    annotator=ANNOTATOR,
    weights="scribble",
    input="drawing",
    # Prompts in the few words that Diorama knows: training/diorama/world.py.
    examples=(
        Example("drawing_1.png", "a red ball, a white house and a tree on grass, a clear blue sky"),
        Example("drawing_2.png", "a person in purple and a yellow box on sand, a sunset"),
        Example("drawing_3.png", "a blue car and an orange cone on snow, a grey sky"),
    ),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(CONDITION)
