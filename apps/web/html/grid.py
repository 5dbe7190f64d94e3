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
    hint = f"picture {min(done + 1, total)} of {total} · Stop keeps what is done"
    return results.strip(words, done / max(total, 1), hint)


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
        facts.append(f"best score {score_words(max(scores))}")
    spent = sum(sum(cell.result.seconds.values()) for cell in cells if cell.result)
    facts.append(duration(spent))
    heads = "".join(
        f'<th scope="col"><span>{results.escape(sweep.columns.label(column))}</span>'
        f"{_mean(mean, high)}</th>"
        for column, mean in enumerate(means(cells, wide))
    )
    rows = "".join(
        f"<tr>{_side(sweep, row)}"
        + "".join(
            _cell(sweep, (column, row), by_place.get((column, row)), files.get((column, row)))
            for column in range(wide)
        )
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
  {results.many_bar(facts, save)}
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
    if rows == 1:
        return ""
    # Its place is kept from the start, so that nothing moves when it comes.
    return f"<small>{'&nbsp;' if mean is None else f'mean {mean:.0f}'}</small>"


def _side(sweep: Sweep, row: int) -> str:
    if not sweep.rows:
        return ""
    return f'<th scope="row"><span>{results.escape(sweep.rows.label(row))}</span></th>'


def _cell(sweep: Sweep, place: tuple[int, int], cell: Cell | None, file: File | None) -> str:
    if cell is not None and cell.result is not None and file is not None:
        size = (cell.result.width, cell.result.height)
        score = score_words(cell.headline)
        return f"<td>{results.picture(score, 'cl-made', results.file_url(file), size, file)}</td>"
    # As large as its picture will be, so that nothing moves when it comes.
    wide, high = sweep.size_of(*place)
    text = f"<p>{results.escape(cell.error)}</p>" if cell else ""
    facts = f'style="aspect-ratio:{wide}/{high}"' + ("" if cell else ' aria-label="not made yet"')
    return f"""<td><figure class="cl-no-picture">
      <div class="cl-cell-empty" {facts}>{text}</div>
      <figcaption aria-hidden="true"><span>100 / 100</span><a>Save PNG</a></figcaption>
    </figure></td>"""
