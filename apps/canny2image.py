"""Generates images from the Canny edges of a photograph.

Run it with `python apps/canny2image.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotators.canny import ANNOTATOR
from core.condition import Condition, Example

CONDITION = Condition(
    name="canny2image",
    title="Canny edges",
    blurb="Keep the outlines of a photograph and let the prompt decide everything else.",
    annotator=ANNOTATOR,
    weights="canny",
    # Prompts in the few words that Diorama knows: training/diorama/world.py.
    examples=(
        Example("diorama_1.png", "a red ball, two blue boxes and a white house on sand, a sunset"),
        Example("diorama_2.png", "a red car, a tree and a blue house on a street with buildings"),
        Example("diorama_3.png", "a person in purple and a yellow ball on snow, a cloudy sky"),
        Example("astronaut.jpg", "a person in orange in a room with blue walls and a grey floor"),
        Example("coffee.jpg", "a red cylinder in a room with yellow walls and a wooden floor"),
        Example("chelsea.jpg", "an orange blob on grass, a clear blue sky"),
    ),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(CONDITION)
