"""Two models' images of the same seeds, side by side, as HTML.

Text from outside is escaped here; page.css styles the classes.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.web.files import SavedResult
from apps.web.html import results
from apps.web.sheet import score_words
from apps.web.suite import duration
from core.request import GenerationResult


@dataclass(frozen=True, eq=False)
class Side:
    """One model's results; None before it has finished."""

    title: str
    result: GenerationResult | None = None
    saved: SavedResult | None = None

    @property
    def image_count(self) -> int:
        """How many images are finished."""
        return len(self.result.images) if self.result else 0


def versus(sides: Sequence[Side]) -> str:
    """Return a result card for each seed: both models' images and re-extracted maps.

    The first side must have its result.
    """
    finished = [(side, side.result, side.saved) for side in sides if side.result and side.saved]
    first = finished[0][1]
    facts = [
        f"{first.width} × {first.height}",
        duration(sum(sum(result.seconds.values()) for _, result, _ in finished)),
        *(
            f"{side.title} {score_words(_mean(result))}"
            for side, result, _ in finished
            if side.image_count and not result.asks_for_nothing
        ),
    ]
    notes = {
        text for _, result, saved in finished for text in (*result.warnings, saved.note) if text
    }
    items = "".join(f"<li>{results.escape(text)}</li>" for text in sorted(notes))
    cards = "".join(_result_card(sides, index) for index in range(len(first.images)))
    return f"""
<section class="cl-results">
  <header class="cl-bar"><h2>{results.escape(" · ".join(facts))}</h2>
    <span class="cl-actions">{results.save_links(finished[0][2])}</span></header>
  {f'<ul class="cl-warnings">{items}</ul>' if items else ""}
  <div class="cl-cards">{cards}</div>
</section>"""


def _mean(result: GenerationResult) -> float:
    return float(np.mean(result.headlines))


def _result_card(sides: Sequence[Side], index: int) -> str:
    result, saved = sides[0].result, sides[0].saved
    assert result and saved  # versus asks for them
    seed, size = result.seeds[index], (result.width, result.height)
    several = len(result.controls) > 1
    control_maps = [
        results.picture(
            control.condition.title if several else "Control map",
            "cl-map", results.file_url(maps.shown_map), size, maps.control_map,
        )
        for control, maps in zip(result.controls, saved.maps, strict=True)
    ]  # fmt: skip
    css_classes = "cl-versus cl-each" if several else "cl-versus"
    # A side has a row for its header, one for its image, and one for each control's map.
    rows = f"--controls:{len(control_maps)};--rows:{len(control_maps) + 2}"
    return f"""
<article class="cl-card">
  <header><div class="cl-seed"><span>Seed</span> <code>{seed}</code>
    <button type="button" class="cl-button" data-cl="seed" data-seed="{seed}">Reuse</button></div>
  </header>
  <div class="{css_classes}" style="{rows}">
    <div class="cl-given">{"".join(control_maps)}</div>
    {"".join(_side(side, index) for side in sides)}</div>
</article>"""


def _side(side: Side, index: int) -> str:
    title = f"<h3>{html.escape(side.title)}</h3>"
    if side.result is None or side.saved is None or index >= side.image_count:
        return (
            f'<section><header>{title}</header><p class="cl-map-note">Not made yet.</p></section>'
        )
    result, image = side.result, side.saved.images[index]
    size, several = (result.width, result.height), len(result.controls) > 1
    figures = results.MEAN if several else results.figures_of(result.controls[0], index)
    reextracted = []
    for control, maps in zip(result.controls, side.saved.maps, strict=True):
        score, title_of = control.scores[index], control.condition.title
        shown = "–" if control.asks_for_nothing else f"<b>{score.headline:.0f}</b> / 100"
        note = f'<p class="cl-map-note">{shown}</p>' if several else ""
        reextracted.append(
            results.picture(
                f"{title_of}, re-extracted" if several else "Re-extracted",
                "cl-map",
                results.file_url(maps.shown_reextracted[index]),
                size,
                maps.reextracted[index],
                note,
            )
        )
    return f"""<section>
    <header>{title}{results.headline_of(result.controls, result.headlines[index])}
      {figures}</header>
    {results.picture("Generated", "cl-made", results.file_url(image), size, image)}
    {"".join(reextracted)}</section>"""
