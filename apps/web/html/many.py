"""The images of a batch as HTML. Text from outside is escaped here; page.css styles the classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from apps.batch.folder import Batch
from apps.web.html import results
from apps.web.sheet import score_words
from apps.web.suite import duration


def many(
    batch: Batch, folder: Path, links: Mapping[str, Path] | None = None, notes: Sequence[str] = ()
) -> str:
    """Return the images so far with their scores, and the pictures without one with the reason.

    `folder` is that of the batch's files; `links` are files to save, by what they are: None while
    more is made, which has its places already.
    """
    facts = [f"{len(batch.done)} of {batch.total} pictures"]
    if batch.bad:
        facts.append(f"{len(batch.bad)} failed")
    if batch.mean_score is not None:
        facts.append(f"mean score {score_words(batch.mean_score)}")
    facts.append(duration(sum(done.seconds for done in batch.done.values())))
    tiles = [
        _tile(folder / image, done.name, score)
        for done in batch.done.values()
        for image, score in zip(done.images, done.scores, strict=True)
    ]
    tiles += [results.without_picture(name, why) for name, why in batch.bad.items()]
    if links is None:
        size = next(
            (_size(folder / image) for d in batch.done.values() for image in d.images), (1, 1)
        )
        names = dict.fromkeys(row.name for row in batch.rows)
        tiles += [
            results.place_of(size, f"<span>{results.escape(name)}: {score_words(100)}</span>")
            for name in names
            if name not in batch.done and name not in batch.bad
        ]
    save = "".join(results.save_link(title, path) for title, path in (links or {}).items())
    return f"""
<section class="cl-results">
  {results.many_bar(facts, save)}
  {results.warnings_list(notes)}
  <div class="cl-maps">{"".join(tiles)}</div>
</section>"""


def _tile(file: Path, name: str, score: float | None) -> str:
    caption = f"{name}: {score_words(score)}"
    return results.picture(caption, "cl-made", results.file_url(file), _size(file), file)


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as opened:
        return opened.size
