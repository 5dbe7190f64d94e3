"""Generates images from the poses of the people in a photograph.

Run it with `python apps/pose2image.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotators.pose import ANNOTATOR
from core.condition import Condition, Example

CONDITION = Condition(
    name="pose2image",
    title="Human pose",
    blurb="Keep how people stand and move, and let the prompt decide who they are and where.",
    annotator=ANNOTATOR,
    weights="pose",
    # Prompts in the few words that Diorama knows: training/diorama/world.py.
    examples=(
        Example("diorama_6.png", "two people in yellow on sand, a sunset"),
        Example("diorama_4.png", "two people in purple on a street with buildings, a cloudy sky"),
        Example("diorama_3.png", "a person in white on grass, a clear blue sky"),
    ),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(CONDITION)
