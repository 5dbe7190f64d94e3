"""Makes a grid of images that shows what two settings do to the picture and its score.

Run it with `python apps/sweep.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from apps.web.tool import Tool

TOOL = Tool(
    name="sweep",
    title="Sweep",
    blurb="A grid over any two settings, with the score in each cell: see what they do.",
    page="sweep_page",
    examples=("diorama_1.png", "diorama_2.png", "diorama_3.png", "coffee.jpg", "astronaut.jpg"),
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(TOOL)
