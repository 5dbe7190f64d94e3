"""Generates images from the depth of a photograph.

Run it with `python apps/depth2image.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotators.depth import ANNOTATOR
from core.condition import Condition, Example

CONDITION = Condition(
    name="depth2image",
    title="Depth",
    blurb="Keep how far away everything is, and let the prompt decide what it is.",
    annotator=ANNOTATOR,
    weights="depth",
    # Prompts in the few words that Diorama knows: training/diorama/world.py.
    examples=(
        Example("diorama_1.png", "a red ball, two blue boxes and a white house on sand, a sunset"),
        Example("diorama_5.png", "a blue table and a white chair in a room with yellow walls"),
        Example("diorama_3.png", "a person in purple and a yellow ball on snow, a cloudy sky"),
        Example("diorama_2.png", "a red car, a tree and a blue house on a street with buildings"),
        Example("coffee.jpg", "a red cylinder in a room with yellow walls and a wooden floor"),
    ),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(CONDITION)
