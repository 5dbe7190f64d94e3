"""Generates images from several control maps at once.

Run it with `python apps/multi2image.py`.
"""

if __name__ == "__main__":
    # `python apps/…` puts apps/ on sys.path, not the repository's root.
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from apps.web.tool import Tool

TOOL = Tool(
    name="multi2image",
    title="Several controls",
    blurb="Two or three control maps at once, of one picture or of several, each measured.",
    page="several_page",
    examples=("diorama_1.png", "diorama_2.png", "diorama_3.png", "coffee.jpg", "astronaut.jpg"),
    takes_results=True,
)

if __name__ == "__main__":
    from apps.web.serve import serve_one

    serve_one(TOOL)
