"""Pictures that follow the Canny edges of a photograph. Alone: `python apps/canny2image.py`."""

if __name__ == "__main__":  # a file run by its path sees only its own folder
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
    examples=(
        Example("astronaut.jpg", "a blue mannequin in front of an orange wall"),
        Example("coffee.jpg", "a white ball on a brown table"),
        Example("chelsea.jpg", "a red sculpture on green grass under a blue sky"),
    ),
)

if __name__ == "__main__":
    from apps._serve import serve_one

    serve_one(CONDITION)
