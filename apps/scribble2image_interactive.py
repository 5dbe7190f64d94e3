"""Generates images from a drawing made in the page.

Run it with `python apps/scribble2image_interactive.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotators.scribble import CANVAS
from core.condition import Condition, Example

CONDITION = Condition(
    name="scribble2image_interactive",
    title="Interactive scribbles",
    blurb="Draw with mouse, pen or finger, and turn the drawing into a picture.",
    annotator=CANVAS,
    weights="scribble",
    input="canvas",
    # Prompts in the few words that Diorama knows: training/diorama/world.py.
    examples=(
        Example("drawing_1.png", "a yellow ball, a blue house and a tree on sand, a sunset"),
        Example("drawing_2.png", "a person in red and a green box on grass, a clear blue sky"),
        Example("drawing_3.png", "a white car and a purple cone on brown earth, a cloudy sky"),
    ),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(CONDITION)
