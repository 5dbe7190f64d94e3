"""The page of one condition: its control's settings and the preview of its map."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from apps.web.files import upload_folder
from apps.web.html import results
from apps.web.jobs.errors import sentence_of
from apps.web.jobs.job import Job, drawn_map
from apps.web.jobs.request import checked_request, new_job, path_in
from apps.web.pages.canvas import Canvas, back_button, put_away
from apps.web.pages.endpoint import Endpoint, endpoint_of
from apps.web.pages.layout import Fields
from apps.web.pages.page import Page
from apps.web.pages.widgets import PRIVATE, plain_errors, widget
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import ALREADY_A_MAP, Condition, RGBImage
from core.consistency import dilated, lines_in
from core.images import resize
from core.metadata import read_settings
from core.params import settings_of
from core.pipeline import map_notes
from core.request import SETTINGS, SETTINGS_OF_ORIGINAL

HIDE_MAP = """(edit) => edit?.size
  ? { __type__: "update" } : { __type__: "update", value: null, visible: false }"""
MAP_LABEL = "Control map"
PARTLY_READ = "Only a part of it could be read. While it is edited, the rest is left out."
READ_WITHIN_PX, MOSTLY_READ = 2, 0.92
"""Of a given map's bright pixels more than so many must be as near to those of what was read."""
NO_ORIGINAL = (
    "It was made by changing a picture (denoising strength {:g}); here there is none to change."
)


def place_page(
    condition: Condition, suite: Suite, send_to: Sequence[Condition | Tool], blocks: gr.Blocks
) -> None:
    """Place one condition's page and its endpoints in the open `blocks`.

    `send_to` are the apps of the site that take a result, this one first.
    """
    Page(blocks, condition, suite, SingleControl(condition, suite), send_to)


class SingleControl:
    """Controls with one condition; its fields are SETTINGS and the annotator's params."""

    section = "Control map"
    advanced = SETTINGS.keys() - {
        "prompt",
        "preprocessor",
        "detect_resolution",
        "pixel_perfect",
        "edit",
    }

    def __init__(self, condition: Condition, suite: Suite):
        self.condition = condition
        self.suite = suite
        self.weights = self.required = (condition.weights,)
        self.examples = condition.examples
        self.annotator = condition.annotator
        self.params = settings_of(condition.annotator.params)

    def models(self) -> list[str]:
        """See Controls."""
        return self.suite.models(self.condition)

    def defaults(self, model: str) -> dict[str, Any]:
        """See Controls; the model's card or else the annotator sets preprocessor and resolution."""
        found = self.suite.defaults(model)
        if found["detect_resolution"] is None:
            found["detect_resolution"] = self.annotator.detect_resolution
        found["preprocessor"] = self.suite.usual_preprocessor(self.condition, model)
        return found

    def place(self, fields: Fields) -> None:
        """See Controls."""
        # First, so that the map is in sight while its settings move.
        self.map = gr.Image(
            label=MAP_LABEL,
            format="png",
            interactive=False,
            visible=False,
            height=260,
            elem_id="map",
            elem_classes="cl-map",
            buttons=["download", "fullscreen"],
        )
        preprocessors = self.annotator.preprocessors
        options = [
            (f"{one.name} ({one.needs})" if one.needs else one.name, one.name)
            for one in preprocessors
        ]
        options.append((f"{ALREADY_A_MAP}: my image is already a control map", ALREADY_A_MAP))
        defaults = self.defaults(self.suite.model)
        fields["preprocessor"] = gr.Radio(
            options,
            value=defaults["preprocessor"],
            label="Preprocessor",
            info=" ".join(f"{one.name}: {one.help}" for one in preprocessors if one.help) or None,
            visible=self.condition.input != "canvas",  # a drawing is not a map yet
            elem_id="preprocessor",
        )
        for name, setting in self.params.items():
            fields[name] = widget(setting, setting.default, elem_id=name)
        if self.annotator.detect_resolution is not None:
            for name in ("detect_resolution", "pixel_perfect"):
                fields[name] = widget(SETTINGS[name], defaults[name], elem_id=name)

    def place_buttons(self) -> None:
        """See Controls."""
        with gr.Row():
            self.preview = gr.Button("Preview map", size="sm", min_width=120, elem_id="preview")
            self.edit = gr.Button(
                "Edit map", size="sm", min_width=120, visible=self.can_edit, elem_id="edit"
            )
        self.back = back_button("edit")

    @property
    def can_edit(self) -> bool:
        """Whether the page has an editor beside its map."""
        return self.annotator.editor is not None and self.condition.input != "canvas"

    def place_editor(self, fields: Fields) -> None:
        """See Controls."""
        if not self.can_edit:
            return
        with gr.Column(visible=False, elem_id="editor") as self.panel:
            fields["edit"] = Canvas(
                self.annotator.editor, "Map editor", can_follow=True, elem_id="canvas"
            )
            with gr.Row():
                self.detected = gr.Button("Back to the detected map", size="sm", elem_id="detected")
                self.hide = gr.Button("Hide the editor", size="sm", elem_id="hide-editor")

    def wire(self, fields: Fields, examples: gr.Dataset) -> None:
        """Draw the map when its button is clicked or its settings move."""

        def draw(*values: Any) -> Iterator[Any]:
            given = dict(zip(fields, values, strict=True))
            try:
                for shown, label in self._maps(given):
                    yield _map_image(shown, label)  # ends here if the tab was closed
            except Exception:
                # The previous map would be taken for this one.
                yield gr.Image(value=None, label=MAP_LABEL, visible=False)
                raise

        def redraw(*values: Any) -> Iterator[Any]:
            """Redraw while a slider moves, if there is something to draw from."""
            given = dict(zip(fields, values, strict=True))
            if given["image"] or given.get("edit"):
                yield from draw(*values)
            else:
                yield gr.skip()

        event = {
            "inputs": list(fields.values()),
            "outputs": [self.map],
            "preprocess": False,
            "concurrency_id": "map",
            "concurrency_limit": 2,
            "trigger_mode": "always_last",
            **PRIVATE,
        }
        self.preview.click(draw, **event)
        for name in ("preprocessor", *self.params):
            fields[name].input(redraw, **event)
        picture = fields["image"]
        hidden = {"outputs": self.map, "js": HIDE_MAP, **PRIVATE}
        if not self.can_edit:
            picture.change(None, None, **hidden)
            return
        # The map of an edit that came with its picture stays: it may be there before the change.
        picture.change(None, [fields["edit"]], **hidden)
        for other in (picture.upload, picture.clear, examples.click):
            other(None, None, **hidden)
        self._wire_editor(fields, examples, event)

    def _wire_editor(self, fields: Fields, examples: gr.Dataset, event: dict[str, Any]) -> None:
        """Open the editor on the map, and show what an edit makes of it."""
        canvas = fields["edit"]
        assert isinstance(canvas, Canvas)
        opened = event | {"outputs": [self.panel, canvas, self.map], "trigger_mode": "once"}

        def begin(*values: Any) -> Iterator[Any]:
            yield from self._open_editor(dict(zip(fields, values, strict=True)))

        def begin_again(*values: Any) -> Iterator[Any]:
            given = dict(zip(fields, values, strict=True))
            yield from self._open_editor(given | {"edit": None})

        def follow(*values: Any) -> Iterator[Any]:
            given = dict(zip(fields, values, strict=True))
            edit = given["edit"]
            if not edit and not path_in(given["image"]):  # all was undone
                nothing = {"drawn": "", "shows": None}
                yield gr.Image(value=None, visible=False), gr.update(scene=nothing)
                return
            for shown, label in self._maps(given):
                scene = None if shown is None else {"drawn": results.inline(shown), "shows": edit}
                yield _map_image(shown, label), gr.update(scene=scene) if scene else gr.skip()

        self.edit.click(begin, **opened)
        self.detected.click(begin_again, **opened)
        canvas.edit(follow, **event | {"outputs": [self.map, canvas]})
        fields["model"].change(
            lambda model: gr.update(scene=self._of_model(model)),
            [fields["model"]],
            [canvas],
            queue=False,
            **PRIVATE,
        )
        # Hidden it keeps its undo; for another picture it is made anew.
        self.hide.click(
            lambda: gr.Column(visible="hidden"), None, self.panel, queue=False, **PRIVATE
        )
        # Not `change`: a reload brings a picture with its edit.
        others = (fields["image"].upload, fields["image"].clear, examples.click)
        kept = put_away(canvas, self.panel, self.back, *others)
        inputs = [kept if field is canvas else field for field in fields.values()]
        self.back.click(begin, **opened | {"inputs": inputs})

    def reopen_editor(self, fields: Fields, *events: Callable[..., Any]) -> None:
        """See Controls."""
        if not self.can_edit:
            return

        def begin(*values: Any) -> Iterator[Any]:
            given = dict(zip(fields, values, strict=True))
            if given["edit"]:
                yield from self._open_editor(given)
            else:
                yield gr.skip(), gr.skip(), gr.skip()

        for after in events:
            after(
                begin,
                list(fields.values()),
                [self.panel, fields["edit"], self.map],
                preprocess=False,
                concurrency_id="map",
                concurrency_limit=2,
                **PRIVATE,
            )

    def _open_editor(self, given: dict[str, Any]) -> Iterator[Any]:
        """Show the editor on the map, with the page's edit or the one that stands for the map.

        Without a picture and an edit it opens on an empty canvas.
        """
        edit, has_picture = given.get("edit") or None, bool(path_in(given["image"]))
        if not edit and not has_picture:
            side = self.suite.defaults(given["model"])["image_resolution"]
            scene = {
                "size": [side, side],
                "photo": "",
                "drawn": "",
                **self._of_model(given["model"]),
            }
            yield gr.Column(visible=True), gr.update(value=None, scene=scene), gr.skip()
            return
        drawn = None
        for shown, label in self._maps(given | {"edit": edit}):
            drawn = shown if shown is not None else drawn
            yield gr.skip(), gr.skip(), _map_image(shown, label)
        if drawn is None:
            return  # the tab was closed
        with plain_errors():
            request, _ = checked_request(self.condition, self.suite, given | {"edit": edit})
            found = edit or self.suite.pipeline.begin_edit(request) or None
        if found and not edit and given["preprocessor"] == ALREADY_A_MAP:
            whole = drawn
            for shown, _ in self._maps(given | {"edit": found}):
                if shown is not None:
                    drawn = shown
                    yield gr.skip(), gr.skip(), _map_image(shown, _label_of_read(whole, shown))
        size = (drawn.shape[1], drawn.shape[0])
        photo = results.inline(resize(request.controls[0].image, size)) if has_picture else ""
        scene = {"size": list(size), "photo": photo, "drawn": results.inline(drawn), "shows": edit}
        scene |= self._of_model(given["model"])
        yield gr.Column(visible=True), gr.update(value=found, scene=scene), gr.skip()

    def _of_model(self, model: object) -> dict[str, Any]:
        """Return what the canvas is told of a model, as part of its scene."""
        card = self.suite.card(model)
        return {"model": {"title": card.title, "classes": list(card.classes)}}

    def _maps(self, given: dict[str, Any]) -> Iterator[tuple[RGBImage | None, str]]:
        """Draw the map; yield it, as it is shown, and its label, which also tells of downloads.

        Yields (None, "") while nothing happens.
        """
        with plain_errors():
            request, _ = checked_request(self.condition, self.suite, given)
            for report in drawn_map(self.suite.pipeline, request):
                if isinstance(report, np.ndarray):
                    # In the label, because a pop-up disappears.
                    notes = map_notes(request.controls[0], report)
                    yield self.annotator.preview(report), ": ".join([MAP_LABEL, *notes])
                else:
                    yield None, results.download_words(report) if report else ""

    def original(self, values: dict[str, Any]) -> object:
        """See Controls."""
        return values["image"]

    def job_values(self, values: dict[str, Any]) -> dict[str, Any]:
        """See Controls."""
        return values

    def job(self, values: dict[str, Any]) -> Job:
        """See Controls."""
        return new_job(self.condition, self.suite, values)

    def model_updates(self, old_model: str, values: dict[str, Any]) -> dict[str, Any]:
        """See Controls; there are none."""
        return {}

    def read_png(self, source: str | bytes) -> tuple[dict[str, Any], list[str]]:
        """See Controls."""
        settings, notes = read_settings(source, self.condition)
        settings |= settings.pop("params", {})
        if self.condition.input != "photo":
            taken = [settings.pop(name, 1.0) for name in SETTINGS_OF_ORIGINAL]
            if taken[0] < 1:
                notes.append(NO_ORIGINAL.format(taken[0]))
        if self.condition.input == "canvas":
            settings.pop("preprocessor", None)
        elif not settings.get("preprocessor", "-"):
            settings["preprocessor"] = self.annotator.preprocessors[0].name
        return settings, notes

    def sent_updates(self, path: str, model: str) -> dict[str, Any]:
        """See Controls; there are none."""
        return {}

    def endpoint(self, fields: Fields) -> Endpoint:
        """See Controls."""
        return endpoint_of(self.condition, fields)


def _label_of_read(given_map: RGBImage, read: RGBImage) -> str:
    """Return the label of a map that was given, and is drawn of what could be read in it."""
    lines = lines_in(given_map)
    kept = dilated(lines_in(read), READ_WITHIN_PX)[lines].mean() if lines.any() else 1
    return MAP_LABEL if kept > MOSTLY_READ else f"{MAP_LABEL}: {PARTLY_READ}"


def _map_image(shown: RGBImage | None, label: str) -> Any:
    """Return the update of the map: the map, or what its download does."""
    if shown is not None:
        try:  # here, because what Gradio cannot save it does not tell
            file = save_pil_to_cache(
                Image.fromarray(shown), str(upload_folder()), "control-map", "png"
            )
        except OSError as error:
            return gr.Image(value=None, label=f"{MAP_LABEL}: {sentence_of(error)}", visible=True)
        return gr.Image(value=file, label=label, visible=True)
    return gr.Image(label=label, visible=True) if label else gr.skip()
