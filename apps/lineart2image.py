"""Generates images from a photograph redrawn as line art.

Run it with `python apps/lineart2image.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotators.lineart import ANNOTATOR
from core.condition import Condition, Example

CONDITION = Condition(
    name="lineart2image",
    title="Line art",
    blurb="Let a photograph be redrawn in fine lines, as with a pen, and colour it by the prompt.",
    annotator=ANNOTATOR,
    weights="lineart",
    # Prompts in the few words that Diorama knows: training/diorama/world.py.
    examples=(
        Example("diorama_1.png", "a red ball, two blue boxes and a white house on sand, a sunset"),
        Example("diorama_3.png", "a person in purple and a yellow ball on snow, a cloudy sky"),
        Example("diorama_5.png", "a blue table and a white chair in a room with yellow walls"),
        Example("astronaut.jpg", "a person in orange in a room with blue walls and a grey floor"),
        Example("chelsea.jpg", "an orange blob on grass, a clear blue sky"),
    ),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(CONDITION)
