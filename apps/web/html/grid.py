"""A sweep's grid as HTML. Text from outside is escaped here; page.css styles the classes."""

import html
from collections.abc import Mapping, Sequence

from apps.web.files import File
from apps.web.html import results
from apps.web.jobs.sweep import Cell, Sweep, means
from apps.web.sheet import score_words
from apps.web.suite import duration

EMPTY = """
<section class="cl-results"><div class="cl-stage cl-empty">
  <h2>The grid will appear here</h2>
  <p>Add a picture or click an example, say what to vary, and press <b>Run</b>. Each picture shows
  its score; stopping keeps those that are done.</p>
</div></section>"""


def under_way(done: int, total: int, words: str) -> str:
    """Return the stage while one of `total` pictures is made; `words` say what is done for it."""
    return f"""
<div class="cl-stage cl-running" role="status">
  <div class="cl-progress"><b>{results.escape(words)}</b>
  <div class="cl-track"><i style="width:{100 * done / max(total, 1):.0f}%"></i></div>
  <span>picture {min(done + 1, total)} of {total} · Stop keeps what is done</span></div>
</div>"""


def grid(
    sweep: Sweep,
    cells: Sequence[Cell],
    files: Mapping[tuple[int, int], File],
    sheet: File | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Return the grid with the cells so far; `files` are their pictures, by (column, row).

    `sheet` is the whole grid as one picture, once there is one.
    """
    wide, high = sweep.shape
    by_place = {(cell.column, cell.row): cell for cell in cells}
    scores = [cell.headline for cell in cells if cell.headline is not None]
    facts = [f"{len(files)} of {wide * high} pictures"]
    if scores:
        facts.append(f"best score {max(scores):.0f} / 100")
    spent = sum(sum(cell.result.seconds.values()) for cell in cells if cell.result)
    facts.append(duration(spent))
    heads = "".join(
        f'<th scope="col"><span>{results.escape(sweep.columns.label(column))}</span>'
        f"{_mean(mean, high)}</th>"
        for column, mean in enumerate(means(cells, wide))
    )
    rows = "".join(
        f"<tr>{_side(sweep, row)}"
        + "".join(_cell(by_place.get((k, row)), files.get((k, row))) for k in range(wide))
        + "</tr>"
        for row in range(high)
    )
    corner = "<th></th>" if sweep.rows else ""
    names = results.escape(axes(sweep))
    longest = (
        max((len(sweep.rows.label(row)) for row in range(high)), default=0) if sweep.rows else 0
    )
    heads_width = min(150, 16 + 8 * longest) if longest else 0
    save = results.save_link("Save the grid as PNG", sheet) if sheet else ""
    return f"""
<section class="cl-results">
  <header class="cl-bar"><h2>{results.escape(" · ".join(facts))}</h2>{save}</header>
  {results.warnings_list(notes)}
  <div class="cl-grid" tabindex="0" role="region" aria-label="{html.escape(names)}"
    style="--columns:{wide};--heads:{heads_width}px"><table>
    <caption>{names}</caption>
    <thead><tr>{corner}{heads}</tr></thead><tbody>{rows}</tbody></table></div>
</section>"""


def axes(sweep: Sweep) -> str:
    """Return what the axes are, in words."""
    across = f"Across: {sweep.columns.setting.label}"
    return f"{across} · Down: {sweep.rows.setting.label}" if sweep.rows else across


def _mean(mean: float | None, rows: int) -> str:
    return f"<small>mean {mean:.0f}</small>" if mean is not None and rows > 1 else ""


def _side(sweep: Sweep, row: int) -> str:
    if not sweep.rows:
        return ""
    return f'<th scope="row"><span>{results.escape(sweep.rows.label(row))}</span></th>'


def _cell(cell: Cell | None, file: File | None) -> str:
    if cell is None:
        return '<td><div class="cl-cell-empty" aria-label="not made yet"></div></td>'
    if cell.result is None or file is None:
        return f'<td><div class="cl-cell-empty"><p>{results.escape(cell.error)}</p></div></td>'
    size = (cell.result.width, cell.result.height)
    score = score_words(cell.headline)
    return f"<td>{results.picture(score, 'cl-made', results.file_url(file), size, file)}</td>"
