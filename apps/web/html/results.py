"""The page's HTML: header, progress of a run, result cards, maps, home page.

Text from outside is escaped here; page.css styles the classes.
"""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from PIL import Image

from apps.web.files import File, InMemory, SavedMaps, SavedResult
from apps.web.jobs.map_choices import DrawnMap, MapChoice
from apps.web.suite import duration, how_much, long_duration
from apps.web.tool import Tool
from core.condition import Condition, RGBImage
from core.png_chunks import write_png
from core.provenance import mark, packet, source_type_of
from core.request import (
    ControlResult,
    Download,
    GenerationRequest,
    GenerationResult,
    Progress,
)
from models.catalog.cards import Card

STAGES = {
    "wait": "Waiting for the machine",
    "prepare": "Preparing the picture",
    "map": "Drawing the control map",
    "load": "Loading the model",
    "text": "Reading the prompt",
    "encode": "Encoding the picture",
    "sample": "Generating",
    "decode": "Decoding",
    "reextract": "Comparing the maps",
}

FIRST_STEP = {
    "photo": "Add a picture or click an example",
    "drawing": "Add a drawing or click an example",
    "canvas": "Draw something or click an example to draw on",
}
"""The first thing to do, by an app's input."""

EMPTY = """
<div class="cl-stage cl-empty">
  <div class="cl-trio" aria-hidden="true">
    <div><span>Control map</span></div>
    <div><span>Generated</span></div>
    <div><span>Re-extracted</span></div>
  </div>
  <h2>Your images will appear here</h2>
  <p>{first_step}, write a prompt, and press <b>Run</b>.
  Each image is shown between its control map and the map re-extracted from it, with a score for
  how well the two agree.</p>
</div>"""

THUMBNAIL_SIDE = 320
"""Of images that are shown while more are made, in pixels."""
ALMOST_OVER = 0.1
"""Seconds; what is left is not said below."""
SMALLEST = 5e-4
"""A figure below it is shown as 0."""
MEAN = '<div class="cl-metric"><b>Mean of the controls</b></div>'
"""Labels the score of an image with several controls."""

WAITING = """
<div class="cl-stage cl-running" role="status">
  <div class="cl-frame cl-pulse"></div>
  <div class="cl-progress"><b>Waiting for the machine</b>
  <div class="cl-track cl-indeterminate"><i></i></div>
  <span>Another run may be ahead of this one.</span></div>
</div>"""


def empty(app: Condition | Tool) -> str:
    """Return the stage before the first run."""
    return EMPTY.format(first_step=FIRST_STEP[app.input])


def escape(text: str) -> str:
    """Escape text for HTML, but not quotes, so that it also reads as plain text."""
    return html.escape(text, quote=False)


def running(progress: Progress, images: int, preview: str = "") -> str:
    """Return the stage of a run: a preview (its URL), the step and the time left."""
    total = max(images * progress.steps, 1)
    done = min(progress.image_index * progress.steps + progress.step, total)
    words = STAGES.get(progress.stage, progress.stage.capitalize())
    details = []
    if progress.download:
        return _downloading(progress, progress.download)
    if progress.ahead:
        details.append(ahead(progress.ahead))
    if images > 1:
        details.append(f"image {min(progress.image_index + 1, images)} of {images}")
    if progress.stage == "sample":
        details.append(f"step {progress.step} of {progress.steps}")
    if progress.seconds_left is not None and progress.seconds_left > ALMOST_OVER:
        details.append(f"about {duration(progress.seconds_left)} left")
    picture = '<div class="cl-frame cl-pulse"></div>'
    if preview:
        picture = f'<div class="cl-frame"><img alt="The picture so far" src="{preview}"></div>'
    return _under_way(words, done / total, " · ".join(details) or "Stop ends it.", picture)


def ahead(count: int) -> str:
    """Return how many runs are before one that waits, in words."""
    return "1 run is ahead of this one" if count == 1 else f"{count} runs are ahead of this one"


def _downloading(progress: Progress, download: Download) -> str:
    hint = "Stop ends it; the next run resumes the download."
    part = download.bytes_here / max(download.bytes_whole, 1)
    return _under_way(download_words(progress), part, hint)


def download_words(progress: Progress) -> str:
    """Return a download's progress and remaining time in words; "" for other reports."""
    if progress.download is None:
        return ""
    words = f"Downloading {progress.download.title}: {how_much(progress.download)}"
    if progress.seconds_left is not None:
        words += f", about {long_duration(progress.seconds_left)} left"
    return words


def progress_words(progress: Progress) -> str:
    """Return what is being done, with its step, in words."""
    words = download_words(progress) or STAGES.get(progress.stage, progress.stage.capitalize())
    if progress.stage == "sample":
        return f"{words}, step {progress.step} of {progress.steps}"
    if progress.ahead:
        return f"{words}: {ahead(progress.ahead)}"
    return words


def _under_way(
    words: str, part: float, hint: str, picture: str = '<div class="cl-frame cl-pulse"></div>'
) -> str:
    return f"""
<div class="cl-stage cl-running" role="status">
  {picture}
  <div class="cl-progress"><b>{escape(words)}</b>
  <div class="cl-track"><i style="width:{100 * part:.0f}%"></i></div>
  <span>{hint}</span></div>
</div>"""


def strip(words: str, part: float | None, hint: str) -> str:
    """Return the stage while many pictures are made, each shown in `results` once it is there.

    `part` is what is done, 0 to 1; None if nobody knows.
    """
    track = (
        '<div class="cl-track cl-indeterminate"><i></i></div>'
        if part is None
        else f'<div class="cl-track"><i style="width:{100 * part:.0f}%"></i></div>'
    )
    return f"""
<div class="cl-stage cl-running" role="status">
  <div class="cl-progress"><b>{escape(words)}</b>{track}<span>{hint}</span></div>
</div>"""


WAITING_MANY = strip("Waiting for the machine", None, "Another run may be ahead of this one.")


def many_bar(facts: Sequence[str], links: str = "") -> str:
    """Return the head of many pictures; `links` save them."""
    return f"""<header class="cl-bar cl-stage cl-many"><h2>{escape(" · ".join(facts))}</h2>
    <span class="cl-actions">{links}</span></header>"""


def note(text: str) -> str:
    """Return the stage with one sentence."""
    return f'<div class="cl-stage cl-note" role="status"><p>{escape(text)}</p></div>'


def results(
    result: GenerationResult,
    saved: SavedResult,
    send_to: Sequence[Condition | Tool] = (),
    references: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> str:
    """Return a result card for each image, with its score, control maps and re-extracted maps.

    Cards are in the order made and carry their rank; a button and the option "Best first" switch
    the order on the page. `send_to` are the apps that an image can be sent to, `references` the
    model card's.
    """
    if not result.images:
        return ""
    count = len(result.images)
    by_score = sorted(range(count), key=lambda i: -result.headlines[i])
    took = sum(result.seconds.values())
    facts = [
        f"{count} image{'s' if count > 1 else ''}",
        f"{result.width} × {result.height}",
        duration(took),
    ]
    if result.cancelled:
        facts.append(f"stopped; {count} of {result.request.num_samples} finished")
    cards = "".join(
        _result_card(result, saved, i, by_score.index(i), send_to) for i in range(count)
    )
    order = (
        '<button type="button" class="cl-button" data-cl="order" aria-pressed="false">'
        "Order by score</button>"
        if count > 1
        else ""
    )
    batch = " cl-batch" if count > 1 else ""
    return f"""
<section class="cl-results">
  <header class="cl-bar"><h2>{escape(" · ".join(facts))}</h2>
    <span class="cl-actions">{order}{save_links(saved)}</span></header>
  {warnings_list([*result.warnings, saved.note])}
  {_what_scores_mean(result, references)}
  {_shared_maps(result, saved, send_to) if batch else ""}
  <div class="cl-cards{batch}">{cards}</div>
</section>"""


def save_links(saved: SavedResult) -> str:
    """Return the links that save a contact sheet, and everything in one archive."""
    links = (("Contact sheet", saved.sheet), ("Save all", saved.archive))
    return "".join(save_link(title, path) for title, path in links if path)


def save_link(title: str, path: File) -> str:
    """Return the link that saves one file."""
    return (
        f'<a class="cl-button" href="{file_url(path)}" download="{html.escape(path.name)}">'
        f"{title}</a>"
    )


def _shared_maps(
    result: GenerationResult, saved: SavedResult, send_to: Sequence[Condition | Tool]
) -> str:
    """Return the control maps of several images, once for all."""
    size = (result.width, result.height)
    maps = "".join(
        picture(
            f"Control map: {control.condition.title}",
            "cl-map",
            file_url(maps.shown_map),
            size,
            maps.control_map,
            _use(maps.control_map, send_to, saved.images[0]),
        )
        for control, maps in zip(result.controls, saved.maps, strict=True)
    )
    return f'<div class="cl-shared">{maps}</div>'


def so_far(result: GenerationResult, saved: SavedResult) -> str:
    """Return the images that are done while more are made, with their scores.

    Each can be saved, and history.js keeps it, so that it outlives a server that ends in the run.
    """
    kind, no_score = source_type_of(result.request), result.asks_for_nothing
    figures = [
        f"""<figure><img src="{thumbnail(image, kind)}" alt="Image {number}">
      <figcaption><span><b>{"–" if no_score else f"{headline:.0f}"}</b></span>
      <span>seed <code>{seed}</code></span>{_save_png(file)}</figcaption></figure>"""
        for number, (image, headline, seed, file) in enumerate(
            zip(result.images, result.headlines, result.seeds, saved.images, strict=True), start=1
        )
    ]
    return _slots(figures, result.request.num_samples, (result.width, result.height))


def to_come(request: GenerationRequest) -> str:
    """Return the places of several images before the first is done."""
    return _slots([], request.num_samples, request.size)


def _slots(figures: Sequence[str], count: int, size: tuple[int, int]) -> str:
    """Return the images that are done, and room for the rest: nothing moves as they come."""
    empty = place_of(size, "<span><b>0</b></span><span>seed <code>0</code></span>")
    return f"""
<section class="cl-results cl-so-far">
  <header class="cl-bar"><h2>{len(figures)} of {count} images</h2></header>
  <div class="cl-maps">{"".join(figures)}{empty * (count - len(figures))}</div>
</section>"""


def place_of(size: tuple[int, int], caption: str) -> str:
    """Return the empty place of a picture to come, as high as with such a caption (HTML)."""
    return f"""<figure class="cl-to-come" aria-hidden="true">
      <div style="aspect-ratio:{size[0]}/{size[1]}"></div>
      <figcaption>{caption}<a>Save PNG</a></figcaption></figure>"""


def retention(hours: int, is_copied: bool) -> str:
    """Return how long the server keeps a visitor's pictures; `is_copied`: it keeps the images."""
    days, rest = divmod(hours, 24)
    number, unit = (hours, "hour") if rest or not days else (days, "day")
    after = f"{number} {unit}{'s' if number > 1 else ''}"
    told = (
        f"Uploads and results are removed from this server after {after}, or sooner if it runs "
        "short of room."
    )
    kept = " Whoever runs it also keeps a copy of every generated image." if is_copied else ""
    return f'<p class="cl-retention">{told}{kept}</p>'


def live(result: GenerationResult) -> str:
    """Return the stage with a live picture, its maps and its score; it is not saved anywhere."""
    control, picture = result.controls[0], result.images[0]
    preview = control.condition.annotator.preview
    shown = (
        ("Control map", preview(control.control_map)),
        ("Found in the picture", preview(control.reextracted[0])),
    )
    maps = "".join(
        f'<figure class="cl-map"><img alt="{title}" src="{inline(image)}">'
        f"<figcaption><span>{title}</span></figcaption></figure>"
        for title, image in shown
    )
    size = f'width="{result.width}" height="{result.height}"'
    score = headline_of(result.controls, result.headlines[0])
    seconds = duration(sum(result.seconds.values()))
    return f"""
<section class="cl-stage cl-live cl-results" data-seconds="{sum(result.seconds.values()):.3f}">
  <header class="cl-bar"><div class="cl-score">{score}</div>
    <span>Live · a quick draft, {seconds} · seed {result.seeds[0]}</span></header>
  <div class="cl-live-pair"><figure class="cl-made"><img alt="The live picture" {size}
    src="{inline(picture, source_type_of(result.request))}"></figure><div>{maps}</div></div>
  {warnings_list(result.warnings)}
</section>"""


def _what_scores_mean(
    result: GenerationResult, references: Mapping[str, tuple[float, float]]
) -> str:
    """Return a sentence that gives the scores their scale, for controls that were measured."""
    sentences = []
    for control in result.controls:
        annotator = control.condition.annotator
        measured = references.get(annotator.measured_as or annotator.name)
        of = " (of maps drawn from its scenes, not by hand)" if annotator.measured_as else ""
        if measured is None or control.asks_for_nothing:
            continue
        several = len(result.controls) > 1
        start = f"{escape(control.condition.title)}: on" if several else "On"
        sentences.append(
            f"{start} average this model scores <b>{measured[0]:.0f}</b> without the control, and "
            f"<b>{measured[1]:.0f}</b> is the most that its autoencoder can keep{of}."
        )
    return f'<p class="cl-scale">{" ".join(sentences)}</p>' if sentences else ""


def warnings_list(texts: Sequence[str]) -> str:
    """Return a list of sentences; nothing for none."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts if text)
    return f'<ul class="cl-warnings">{items}</ul>' if items else ""


def _result_card(
    result: GenerationResult,
    saved: SavedResult,
    index: int,
    rank: int,
    send_to: Sequence[Condition | Tool],
) -> str:
    seed, size = result.seeds[index], (result.width, result.height)
    image = picture(
        "Generated", "cl-made", file_url(saved.images[index]), size, saved.images[index]
    )
    alone = len(result.images) == 1  # else the control maps stand above, once for all
    if len(result.controls) == 1:
        figures = figures_of(result.controls[0], index)
        use_map = _use(saved.maps[0].control_map, send_to, saved.images[index])
        wanted, found = _maps(saved.maps[0], index, size, use_map)
        three = f'<div class="cl-three">{wanted}{image}{found}</div>'
        body = f"""{three if alone else f'<div class="cl-two">{image}{found}</div>'}
  {_compare(saved.maps[0], index, size)}"""
    else:
        figures = MEAN
        parts = []
        for control, maps in zip(result.controls, saved.maps, strict=True):
            wanted, found = _maps(maps, index, size)
            parts.append(f"""<section class="cl-control">
    <header><h3>{escape(control.condition.title)}</h3>
      {headline_of([control], control.scores[index].headline)}
      {figures_of(control, index)}</header>
    <div class="cl-two">{wanted if alone else ""}{found}</div>
    {_compare(maps, index, size)}</section>""")
        body = f'<div class="cl-several">{image}<div>{"".join(parts)}</div></div>'
    return f"""
<article class="cl-card" style="--rank:{rank}">
  <header>
    {headline_of(result.controls, result.headlines[index])}
    {figures}
    <div class="cl-seed"><span>Seed</span> <code>{seed}</code>
      <button type="button" class="cl-button" data-cl="seed" data-seed="{seed}">Reuse</button>
      {_send(saved.images[index], send_to)}</div>
  </header>
  {body}
</article>"""


def _send(image: File, send_to: Sequence[Condition | Tool]) -> str:
    """Return links to the apps that take a result; they open in a new tab to keep this page."""
    return _menu("Send to", "Opens an app with this image and its settings", send_to, image=image)


def _use(control_map: File, send_to: Sequence[Condition | Tool], image: File | None = None) -> str:
    """Return links to the apps that take a map, with the settings of the image made from it."""
    takers = [app for app in send_to if isinstance(app, Condition) and app.input != "canvas"]
    title = "Opens an app with this control map as its input"
    return _menu("Use this map", title, takers, image=image, control_map=control_map)


def _menu(
    name: str,
    title: str,
    apps: Sequence[Condition | Tool],
    image: File | None = None,
    control_map: File | None = None,
) -> str:
    """Return a menu of links to apps that start from files of a run; see Prefill.take_sent."""
    files = [("from", image), ("map", control_map)]
    if not apps or any(isinstance(file, InMemory) for _, file in files):
        return ""
    query = "&amp;".join(
        f"{key}={quote(f'{path.parent.name}/{path.name}')}"
        for key, path in files
        if isinstance(path, Path)
    )
    links = "".join(
        f'<li><a href="{html.escape(app.name)}?{query}" target="_blank" rel="noopener">'
        f"{escape(app.title)}</a></li>"
        for app in apps
    )
    return f"""<details class="cl-send"><summary class="cl-button" title="{title}">{name}</summary>
      <ul>{links}</ul></details>"""


def headline_of(controls: Sequence[ControlResult], headline: float) -> str:
    """Return the score of an image; of controls that all ask for nothing there is none."""
    if all(one.asks_for_nothing for one in controls):
        return '<div class="cl-score" title="An empty map asks for nothing"><b>–</b></div>'
    return f"""<div class="cl-score" title="How well the two maps agree, 0 to 100">
      <b>{headline:.0f}</b><span>/ 100</span></div>"""


def figures_of(control: ControlResult, index: int) -> str:
    """Return the metrics of a control's map in an image, with their names."""
    if control.asks_for_nothing:
        return '<div class="cl-metric"><span>No score: the control map is empty.</span></div>'
    score = control.scores[index]
    others = (f"{name} {_figure(v)}" for name, v in score.metrics.items() if name != score.metric)
    return f"""<div class="cl-metric">
      <b>{escape(score.metric)} {_figure(score.metrics[score.metric])}</b>
      <span>{escape(" · ".join(others))}</span></div>"""


def _maps(maps: SavedMaps, index: int, size: tuple[int, int], use_map: str = "") -> tuple[str, str]:
    """Return an image's control map, with a menu below it, and its re-extracted map."""
    return (
        picture("Control map", "cl-map", file_url(maps.shown_map), size, maps.control_map, use_map),
        picture(
            "Re-extracted",
            "cl-map",
            file_url(maps.shown_reextracted[index]),
            size,
            maps.reextracted[index],
        ),
    )


def _compare(maps: SavedMaps, index: int, size: tuple[int, int]) -> str:
    wanted, found = file_url(maps.shown_map), file_url(maps.shown_reextracted[index])
    pair = f"--wanted:url('{wanted}');--found:url('{found}');aspect-ratio:{size[0]}/{size[1]}"
    return f"""<details class="cl-compare">
    <summary>Compare the two maps</summary>
    <div class="cl-pair" style="--split:50%;{pair}">
      <div class="cl-layer cl-wanted"></div><div class="cl-layer cl-found"></div></div>
    <div class="cl-tools">
      <span>Control map</span>
      <input type="range" min="0" max="100" value="50" data-cl="split"
        aria-label="Slide from one map to the other">
      <span>Re-extracted</span>
      <button type="button" class="cl-button" data-cl="overlay" aria-pressed="false">
        Overlay</button>
    </div>
    <p class="cl-legend"><span class="cl-key-wanted">only in the control map</span>
      <span class="cl-key-found">only re-extracted</span>
      <span class="cl-key-both">in both</span></p>
  </details>"""


def picture(
    caption: str, kind: str, url: str, size: tuple[int, int], file: File, note: str = ""
) -> str:
    """Return a picture that can be enlarged and saved; `note` is HTML."""
    caption = html.escape(caption)
    return f"""<figure class="{kind}">
      <button type="button" class="cl-zoom" data-cl="zoom" aria-label="Enlarge: {caption}">
      <img src="{url}" width="{size[0]}" height="{size[1]}" alt="{caption}"></button>
      <figcaption><span>{caption}</span>
      {_save_png(file)}
      </figcaption>{note}</figure>"""


def _save_png(file: File) -> str:
    return f'<a href="{file_url(file)}" download="{html.escape(file.name)}">Save PNG</a>'


def example_names(names: Sequence[str]) -> str:
    """Return the names of the examples, which page.js gives to their buttons."""
    return f"<ol hidden>{''.join(f'<li>Example: {escape(name)}</li>' for name in names)}</ol>"


EMPTY_MAPS = """
<section class="cl-results"><div class="cl-stage cl-empty">
  <h2>The maps will appear here</h2>
  <p>Add a picture or click an example, and press <b>Run</b>. Every chosen map is drawn; one that
  fails says why in its place.</p>
</div></section>"""


def drawing(choice: MapChoice, done: int, total: int) -> str:
    """Return the stage while a map is being drawn."""
    return strip(f"Drawing {choice.title}", done / total, f"map {done + 1} of {total}")


def maps(
    drawn_maps: Sequence[DrawnMap],
    files: Sequence[tuple[File, File] | None],
    total: int,
    notes: Sequence[str] = (),
    archive: Path | None = None,
    send_to: Sequence[Condition | Tool] = (),
) -> str:
    """Return the maps drawn so far out of `total`, under the notes on the picture.

    `files` are each map's file and its preview, `archive` all of them in one file; `send_to` are
    the apps that may take a map.
    """
    tiles = "".join(
        _tile(drawn, paths, send_to) for drawn, paths in zip(drawn_maps, files, strict=True)
    )
    found = [one.control_map for one in drawn_maps if one.control_map is not None]
    facts = [f"{len(found)} of {total} maps", duration(sum(s.seconds for s in drawn_maps))]
    if found:
        facts.insert(1, f"{found[0].shape[1]} × {found[0].shape[0]}")
    return f"""
<section class="cl-results">
  {many_bar(facts, save_links(SavedResult((), (), archive=archive)))}
  {warnings_list(notes)}
  <div class="cl-maps">{tiles}</div>
</section>"""


def _tile(
    drawn: DrawnMap, paths: tuple[File, File] | None, send_to: Sequence[Condition | Tool]
) -> str:
    note = f'<p class="cl-map-note">{escape(drawn.note)}</p>' if drawn.note else ""
    if paths is None or drawn.control_map is None:
        return without_picture(drawn.choice.title, drawn.note)
    high, wide = drawn.control_map.shape[:2]
    annotator = drawn.choice.annotator.name
    takers = [
        app for app in send_to if isinstance(app, Condition) and app.annotator.name == annotator
    ]
    note += _use(paths[0], takers)
    return picture(drawn.choice.title, "cl-made", file_url(paths[1]), (wide, high), paths[0], note)


def preview(
    condition: Condition, files: tuple[File, File], size: tuple[int, int], notes: Sequence[str]
) -> str:
    """Return one of several controls' maps, drawn before a run; `files` as RunFiles.save_map's."""
    told = "".join(f'<p class="cl-map-note">{escape(note)}</p>' for note in notes)
    return picture(condition.title, "cl-map", file_url(files[1]), size, files[0], told)


def previews(tiles: Sequence[str], words: str = "") -> str:
    """Return the maps that are drawn so far, and what is waited for."""
    waiting = f'<p class="cl-told" role="status">{escape(words)}</p>' if words else ""
    maps = f'<div class="cl-maps">{"".join(tiles)}</div>'
    return f'<section class="cl-results">{maps}{waiting}</section>'


def without_picture(caption: str, why: str) -> str:
    """Return the place of a picture that could not be made."""
    return f"""<figure class="cl-no-map"><div><p class="cl-map-note">{escape(why)}</p></div>
      <figcaption><span>{escape(caption)}</span></figcaption></figure>"""


def _figure(value: float | None) -> str:
    return "" if value is None else f"{0 if abs(value) < SMALLEST else value:.3g}"


def file_url(file: File) -> str:
    """Return the URL of a file; relative, so that it works behind a proxy."""
    if isinstance(file, InMemory):
        return "data:image/png;base64," + base64.b64encode(file.png).decode()
    return "gradio_api/file=" + quote(str(file))


def thumbnail(image: RGBImage, source_type: str) -> str:
    """Return a small version of a generated picture as the data URL of a JPEG, marked as such."""
    memory, small = io.BytesIO(), Image.fromarray(image)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    small.save(memory, "JPEG", quality=88, xmp=packet(source_type).encode())
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode()


def inline(image: RGBImage, source_type: str = "") -> str:
    """Return a picture as the data URL of a PNG; a generated one is marked by its source type."""
    memory = io.BytesIO()
    # At this level it is written four times as fast.
    write_png(memory, image, mark(source_type) if source_type else {}, compress_level=1)
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode()


def header(app: Condition | Tool, facts: Sequence[str], card: Card) -> str:
    """Return a page's header: the app, facts, and the model with prompts to try."""
    prompts = "".join(
        f'<li><button type="button" data-cl="prompt">{escape(text)}</button></li>'
        for text in card.prompts
    )
    tries = (
        f'<details class="cl-about"><summary>Prompts to try</summary><ul>{prompts}</ul></details>'
    )
    model = f'<p class="cl-model"><b>{escape(card.title)}.</b> {escape(card.blurb)}</p>'
    return head(app, facts, model) + (tries if prompts else "")


def head(app: Condition | Tool, facts: Sequence[str], below: str = "") -> str:
    """Return the header's first part: the app and its facts; `below` is HTML."""
    chips = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return f"""
<div class="cl-head"><div><h1>{escape(app.title)}</h1><p>{escape(app.blurb)}</p></div>
  <div class="cl-chips" role="status">{chips}</div>{below}</div>"""


def home(
    apps: Sequence[Condition | Tool], pictures: Path, card: Card, others: Sequence[Card] = ()
) -> str:
    """Return the home page: the apps in groups, each with its picture from a folder.

    `card` is that of the model that pages start with, `others` those that they offer too.
    """
    groups: dict[str, list[Condition | Tool]] = {title: [] for title in GROUPS.values()}
    for app in apps:
        groups[GROUPS["tool" if isinstance(app, Tool) else app.input]].append(app)
    sections = "".join(
        f"""<section><h2>{title}</h2>
  <nav class="cl-home" aria-label="{title}">{"".join(_link(one, pictures) for one in found)}</nav>
  </section>"""
        for title, found in groups.items()
        if found
    )
    return f"""
<div class="cl-head"><div><h1>ControlLoop</h1><p>Images that follow a control map, with a
score for how well they do: the map is re-extracted from every image and compared with the one it
was given.</p></div>{_which_model(card, others)}</div>
{sections}"""


GROUPS = {
    "canvas": "Draw",
    "drawing": "Draw",
    "photo": "Start from a photograph",
    "tool": "Tools",
}
"""The groups of the home page, by an app's input."""


def _which_model(card: Card, others: Sequence[Card]) -> str:
    """Return one sentence that says which model it is and how to get another."""
    how = next(
        (
            f"; for {escape(one.title)} choose it on any page under <b>Advanced options</b>, "
            f"<b>Model</b>, or start <code>python launch.py --model {escape(one.name)}</code>"
            for one in others
            if not one.base_of and one.name != card.name
        ),
        "",
    )
    blurb = re.split(r"[:.] ", card.blurb, maxsplit=1)[0].rstrip(".")
    return f"""<p class="cl-model">The pictures are made by <b>{escape(card.title)}</b>:
  {escape(blurb[:1].lower() + blurb[1:])}{how}.</p>"""


def _link(app: Condition | Tool, pictures: Path) -> str:
    file = pictures / f"{app.name}.jpg"
    shown = "input, control map and result" if isinstance(app, Condition) else "an example"
    image = (
        f'<img src="{file_url(file)}" alt="{html.escape(app.title)}: {shown}" loading="lazy">'
        if file.is_file()
        else ""
    )
    return f"""<a href="{html.escape(app.name)}"><h3>{escape(app.title)}</h3>
  <p>{escape(app.blurb)}</p>{image}</a>"""


def restored_note(labels: Sequence[str], notes: Sequence[str], word: str = "Restored") -> str:
    """Return which settings were restored, and notes on the others."""
    first = f"{word}: {', '.join(labels)}." if labels else ""
    items = "".join(f"<li>{escape(text)}</li>" for text in notes)
    return f'<div class="cl-restored" role="status"><p>{escape(first)}</p><ul>{items}</ul></div>'
