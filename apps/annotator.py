"""Draws every control map of one picture.

Run it with `python apps/annotator.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from apps.web.tool import Tool

TOOL = Tool(
    name="annotator",
    title="Every control map",
    blurb="One picture as every annotator sees it, side by side; each map is a PNG to keep.",
    page="maps_page",
    examples=("diorama_3.png", "diorama_2.png", "astronaut.jpg", "coffee.jpg", "chelsea.jpg"),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(TOOL)
