"""Condition -> page: the widgets, their order and what happens when they are used.

Settings' labels, bounds and helps come from the records; what is shown, from _cards.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from apps import _cards
from apps._endpoint import publish
from apps._files import SavedResult, save
from apps._job import Job
from apps._pair import Pair, new_pair, rival
from apps._request import (
    as_layer,
    checked_request,
    given_drawing,
    new_job,
    sent_result,
    uploaded,
)
from apps._suite import Suite
from apps._tool import Tool
from apps._versus import Side, versus
from apps._widgets import (
    AT_ONCE,
    CACHE,
    ONE_AT_A_TIME,
    PRIVATE,
    TEST_IMAGES,
    example_strip,
    picture_input,
    plain_errors,
    run_and_stop,
    widget,
)
from core.condition import ALREADY_A_MAP, Condition, RGBImage
from core.images import read_image
from core.params import controls
from core.pipeline import empty_notes
from core.png import read_settings
from core.request import GenerationRequest, GenerationResult, Progress

CANVAS_SIDE = 512
"""Of a new canvas, in pixels, as in v1.0's interactive app."""
PROMPTS = ("prompt", "added_prompt", "negative_prompt")
STOPPED_EARLY = "Stopped before the first image was finished."


def build_page(
    condition: Condition, suite: Suite, send_to: Sequence[Condition | Tool] = ()
) -> gr.Blocks:
    """Build one condition's page, to be launched alone or rendered into a site.

    `send_to` are the other apps of the site that take a result.
    """
    with gr.Blocks(
        title=f"{condition.title} · ControlLoop", analytics_enabled=False, delete_cache=CACHE
    ) as page:
        Page(condition, suite, send_to).build(page)
    return page


class Page:
    """One condition's page; _multi_page makes another of it for several."""

    map_section = "Control map"
    weights: tuple[str, ...] = ()
    advanced = ("image_resolution", "strength", "control_start", "control_end",
                "guess_mode", "steps", "guidance_scale")  # fmt: skip

    def __init__(
        self, condition: Condition, suite: Suite, send_to: Sequence[Condition | Tool] = ()
    ):
        self.app: Condition | Tool = condition
        self.condition = condition
        self.input = condition.input
        self.given_examples = condition.examples
        self.suite = suite
        self.send_to = send_to
        self.weights = (condition.weights,)
        self.annotator = condition.annotator
        self.params = controls(condition.annotator.params)
        self.defaults = self._defaults_of(suite.model)
        self.fields: dict[str, gr.components.Component] = {}
        self.canvas: gr.ImageEditor | None = None

    def _defaults_of(self, model: str) -> dict[str, Any]:
        """Return the settings a model starts with; its card, or the annotator, says how to draw."""
        found = self.suite.defaults(model)
        if found["detect_resolution"] is None:
            found["detect_resolution"] = self.annotator.detect_resolution
        found["preprocessor"] = self.suite.usual_preprocessor(self.condition, model)
        return found

    # What stands where

    def build(self, page: gr.Blocks) -> None:
        self.header = gr.HTML(self._header(self.suite.model), elem_classes="cl-header")
        with gr.Row(elem_classes="cl-columns"):
            with gr.Column(elem_classes="cl-input"):
                self._input()
            with gr.Column(elem_classes="cl-settings"):
                self._settings()
            with gr.Column(elem_classes="cl-results-column", elem_id="results-column"):
                self.stage = gr.HTML(_cards.empty(self.app), elem_id="stage")
                self.results = gr.HTML("", elem_id="results")
        self.job = gr.State(None)
        self.last_seed = gr.State(-1)
        self.shown_model = gr.State(self.suite.model)
        self._wire()
        self._wire_map()
        if self.canvas is None:
            self._wire_sent(page)
        self._publish()

    def _publish(self) -> None:
        publish(self.condition, self.suite, self.fields, self._save)

    def _input(self) -> None:
        drawn_here, drawing = (self.input == kind for kind in ("canvas", "drawing"))
        if drawn_here:
            self._canvas()
        self.fields["image"] = picture_input("drawing" if drawing else "picture", not drawn_here)
        self._examples()
        self._add("prompt", GenerationRequest, lines=2, elem_id="prompt",
                  placeholder=self._prompt_hint())  # fmt: skip
        self.run, self.stop = run_and_stop()
        self.compare = gr.Button(**self._comparison(self.suite.model), size="md", elem_id="compare")

    def _canvas(self) -> None:
        self.canvas = gr.ImageEditor(
            label="Draw here",
            type="numpy",
            image_mode="RGBA",
            format="png",
            sources=(),  # with any, Gradio starts with the tool that asks for a picture
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=8, colors=["#000000"], color_mode="fixed"),
            eraser=gr.Eraser(default_size=24),
            canvas_size=(CANVAS_SIDE, CANVAS_SIDE),
            height=460,
            elem_id="canvas",
            placeholder="Draw with mouse, pen or finger",
        )
        with gr.Accordion("Canvas size", open=False, elem_classes="cl-section"):
            sides = [
                gr.Slider(
                    256, 1024, CANVAS_SIDE, step=1, label=f"Canvas {side}", elem_id=f"canvas_{side}"
                )
                for side in ("width", "height")
            ]
            gr.Button("New canvas", size="sm", elem_id="new-canvas").click(
                lambda wide, high: gr.ImageEditor(value=None, canvas_size=(wide, high)),
                sides,
                [self.canvas],
                queue=False,
                **PRIVATE,
            )

    def _settings(self) -> None:
        with gr.Accordion(self.map_section, open=True, elem_classes="cl-section"):
            self._map_controls()
            self.invert = gr.Checkbox(
                label="Show maps inverted",
                info="Such as black lines on white. Display only: the model gets them as drawn.",
                elem_id="invert",
            )
        with gr.Accordion("Advanced options", open=False, elem_classes="cl-section",
                          elem_id="advanced"):  # fmt: skip
            self._advanced()
        self.restore = gr.File(
            label="Restore settings: drop a PNG saved here",
            file_types=[".png"],
            height=76,
            elem_id="restore",
            elem_classes="cl-restore",
        )
        self.restored = gr.HTML("", elem_id="restored")

    def _examples(self) -> None:
        here = [e for e in self.given_examples if (TEST_IMAGES / e.image).is_file()]
        self.example_values = [(str(TEST_IMAGES / e.image), e.prompt) for e in here]
        self.examples = example_strip([TEST_IMAGES / e.image for e in here])

    def _map_controls(self) -> None:
        ways = self.annotator.preprocessors
        options = [
            (f"{way.name} ({way.needs})" if way.needs else way.name, way.name) for way in ways
        ]
        options.append((f"{ALREADY_A_MAP}: my image is already a control map", ALREADY_A_MAP))
        self.fields["preprocessor"] = gr.Radio(
            options,
            value=self.defaults["preprocessor"],
            label="Preprocessor",
            info=" ".join(f"{way.name}: {way.help}" for way in ways if way.help) or None,
            visible=self.canvas is None,  # what is drawn here is no map yet
            elem_id="preprocessor",
        )
        for name, control in self.params.items():
            self.fields[name] = widget(control, control.default, elem_id=name)
        if self.annotator.detect_resolution is not None:
            self._add("detect_resolution", GenerationRequest)
        self.preview = gr.Button("Preview map", elem_id="preview", size="md")
        self.map = gr.Image(
            label="Control map",
            format="png",
            interactive=False,
            visible=False,
            height=260,
            elem_id="map",
            elem_classes="cl-map",
            buttons=["download", "fullscreen"],
        )

    def _advanced(self) -> None:
        models = self._models()
        self.fields["model"] = gr.Dropdown(
            [(self.suite.card(name).title, name) for name in models],
            value=self.suite.model,
            label="Model",
            elem_id="model",
        )
        self._add("num_samples", GenerationRequest)
        self.best_first = gr.Checkbox(
            label="Best first",
            info="Show the results by their score; the seeds and the files stay as made.",
            elem_id="best_first",
        )
        for name in self.advanced:
            self._add(name, GenerationRequest)
        with gr.Row(elem_classes="cl-seed-row"):
            self._add("seed", GenerationRequest, min_width=140, elem_id="seed")
            with gr.Column(min_width=120, scale=0):
                self.reuse = gr.Button("Reuse last seed", size="sm", elem_id="reuse")
                self.random = gr.Button("Random", size="sm")
        for name in ("eta", "added_prompt", "negative_prompt"):
            self._add(name, GenerationRequest)

    def _models(self) -> list[str]:
        return self.suite.models(self.condition)

    def _add(self, name: str, record: type, **options: Any) -> None:
        control = controls(record)[name]
        options.setdefault("elem_id", name)
        self.fields[name] = widget(control, self.defaults[name], **options)

    def _prompt_hint(self) -> str:
        prompts = self.suite.card(self.suite.model).prompts
        return f"For example: {prompts[0]}" if prompts else ""

    def _header(self, model: str) -> str:
        facts = self.suite.facts(model, *self.weights)
        return _cards.header(self.app, facts, self.suite.card(model))

    # What happens when

    def _wire(self) -> None:
        fields = list(self.fields.values())
        for button, begin in ((self.run, self._begin), (self.compare, self._begin_pair)):
            begun = self._with_drawing(button.click)(
                begin,
                [self.job, *fields],
                [self.job, self.run, self.stop, self.stage],
                preprocess=False,
                **AT_ONCE,
                **PRIVATE,
            )
            ran = begun.success(
                self._generate,
                [self.job, self.last_seed],
                [self.stage, self.results, self.last_seed],
                **ONE_AT_A_TIME,
                **PRIVATE,
            )
            ran.then(
                self._settle,
                [self.job, self.fields["model"], self.last_seed],
                [self.job, self.run, self.stop, self.stage, self.header],
                queue=False,
                **PRIVATE,
            )
        self.fields["model"].change(
            lambda model: gr.Button(**self._comparison(model)),
            [self.fields["model"]],
            [self.compare],
            queue=False,
            **PRIVATE,
        )
        self.stop.click(self._stop, [self.job], [self.stop], queue=False, **PRIVATE)
        for switch, looks in ((self.invert, "cl-invert"), (self.best_first, "cl-best-first")):
            switch.change(
                None,
                [switch],
                None,
                js=f"(on) => {{document.body.classList.toggle('{looks}', on)}}",
            )
        self.examples.click(
            self._take_example,
            [self.examples],
            [self.canvas or self.fields["image"], self.fields["prompt"]],
            queue=False,
            **PRIVATE,
        )
        self.random.click(lambda: -1, None, [self.fields["seed"]], queue=False, **PRIVATE)
        self.reuse.click(
            lambda seed: seed, [self.last_seed], [self.fields["seed"]], queue=False, **PRIVATE
        )
        self.fields["model"].input(
            self._change_model,
            [self.shown_model, *fields],
            [self.shown_model, self.header, *fields],
            preprocess=False,
            **AT_ONCE,
            **PRIVATE,
        )
        self.restore.upload(
            self._restore,
            [self.restore],
            [self.restored, self.restore, self.shown_model, self.header, *fields],
            **PRIVATE,
        )
        loading = gr.Timer(1.5)
        loading.tick(
            self._look_at_loading,
            [self.fields["model"]],
            [self.header, loading],
            queue=False,
            **PRIVATE,
        )

    def _wire_map(self) -> None:
        """Draw the map on its button, and again while its settings move."""
        fields = list(self.fields.values())
        look = {
            "inputs": fields,
            "outputs": [self.map],
            "preprocess": False,
            "concurrency_id": "map",
            "concurrency_limit": 2,
            "trigger_mode": "always_last",
            **PRIVATE,
        }
        self._with_drawing(self.preview.click)(self._draw_map, **look)
        for name in ("preprocessor", *self.params):
            self.fields[name].input(self._redraw_map, **look)
        self.fields["image"].change(
            lambda: gr.Image(value=None, visible=False), None, [self.map], queue=False, **PRIVATE
        )

    def _wire_sent(self, page: gr.Blocks) -> None:
        """Take what another app sent here, if the page's address names it."""
        sent = gr.Textbox(visible=False)
        page.load(
            self._take_sent,
            [sent],
            [self.restored, self.shown_model, self.header, *self.fields.values()],
            js="() => [new URLSearchParams(location.search).get('from') ?? '']",
            **AT_ONCE,
            **PRIVATE,
        )

    def _take_example(self, index: int) -> tuple[Any, str]:
        path, prompt = self.example_values[index]
        return (path if self.canvas is None else _as_drawn(path)), prompt

    def _with_drawing(self, trigger: Any) -> Any:
        """Return the trigger for what needs the picture; on a canvas the picture is taken first."""
        if self.canvas is None:
            return trigger
        taken = trigger(
            self._take_drawing,
            [self.canvas],
            [self.fields["image"]],
            preprocess=False,
            **AT_ONCE,
            **PRIVATE,
        )
        return taken.success

    def _take_drawing(self, drawing: Any) -> RGBImage:
        with plain_errors():
            return given_drawing(drawing)

    def _begin(self, job: Job | Pair | None, *values: Any) -> tuple[Any, ...]:
        """Check everything before a place in the queue is taken."""
        with plain_errors():
            if job is None or job.finished:
                job = self._new_job(self._given(values))
        return job, gr.Button(visible=False), gr.Button(visible=True), _cards.WAITING

    def _begin_pair(self, job: Job | Pair | None, *values: Any) -> tuple[Any, ...]:
        """Begin the same with two models."""
        with plain_errors():
            if job is None or job.finished:
                job = new_pair(self.condition, self.suite, self._given(values))
        return self._begin(job)

    def _comparison(self, model: str) -> dict[str, Any]:
        """Return what the button that compares a model with another says, and if it is seen."""
        other = rival(self.suite, self.app, model) if isinstance(self.app, Condition) else ""
        title = self.suite.card(other).title if other else ""
        return {"value": f"Compare with {title}", "visible": bool(other)}

    def _new_job(self, given: dict[str, Any]) -> Job:
        return new_job(self.condition, self.suite, given)

    def _generate(self, job: Job | Pair, last_seed: int) -> Iterator[tuple[Any, ...]]:
        with plain_errors():
            try:
                for stage, results, seed in self._watch(job):
                    last_seed = seed if isinstance(seed, int) else last_seed
                    yield stage, results, seed
            except Exception:
                yield self._blank(last_seed), gr.skip(), gr.skip()
                raise

    def _watch(self, job: Job | Pair) -> Iterator[tuple[Any, ...]]:
        preview = None
        made: list[tuple[GenerationResult, SavedResult]] = []
        for report in job.run():
            if isinstance(report, Progress):
                preview = preview if report.preview is None else report.preview
                shown = _cards.running(report, job.request.num_samples, preview)
                yield shown, gr.skip(), gr.skip()
            elif isinstance(report, GenerationResult) and report.images:
                self.suite.measured(report)
                made.append((report, self._save(report)))
                yield "", self._shown(job, made), report.seeds[0]
            elif isinstance(report, GenerationResult) or job.stopped:
                yield _cards.note(STOPPED_EARLY), gr.skip(), gr.skip()
            else:
                yield gr.skip(), gr.skip(), gr.skip()

    def _shown(self, job: Job | Pair, made: Sequence[tuple[GenerationResult, SavedResult]]) -> str:
        if not isinstance(job, Pair):
            return _cards.results(*made[0], self.send_to)
        titles = [self.suite.card(name).title for name in job.models]
        there = [Side(title, *one) for title, one in zip(titles, made, strict=False)]
        return versus([*there, *(Side(title) for title in titles[len(made) :])])

    def _settle(self, job: Job | Pair | None, model: str, last_seed: int) -> tuple[Any, ...]:
        """Bring the buttons back, whatever happened: done, stopped, refused or failed."""
        never_ran = job is not None and not job.finished
        return (
            None,
            gr.Button(visible=True),
            gr.Button(visible=False, value="Stop"),
            self._blank(last_seed) if never_ran else gr.skip(),
            self._header(model),
        )

    def _blank(self, last_seed: int) -> str:
        """Return what stands above the results when nothing runs."""
        return _cards.empty(self.app) if last_seed < 0 else ""

    def _stop(self, job: Job | Pair | None) -> Any:
        if job is not None:
            job.stop()
        return gr.Button(value="Stopping …")

    def _draw_map(self, *values: Any) -> Any:
        with plain_errors():
            request, _ = checked_request(self.condition, self.suite, self._given(values))
            control_map = self.suite.pipeline.draw_map(self.condition, request)
            for note in empty_notes(self.annotator, request, control_map):
                gr.Warning(_cards.escape(note))
            return gr.Image(value=self.annotator.preview(control_map), visible=True)

    def _redraw_map(self, *values: Any) -> Any:
        """Follow a moving slider; without a picture there is nothing to follow."""
        given = self._given(values)
        return self._draw_map(*values) if given["image"] else gr.skip()

    def _change_model(self, before: str, *values: Any) -> list[Any]:
        """Move settings that still stand at the old model's defaults to the new one's."""
        with plain_errors():
            given = self._given(values)
            model = given["model"]
            old, new = self._defaults_of(before), self._defaults_of(model)
            moved = [
                new[name] if name in new and given[name] == old[name] != new[name] else gr.skip()
                for name in self.fields
            ]
            return [model, self._header(model), *moved]

    def _restore(self, path: str | None) -> list[Any]:
        with plain_errors():
            settings, notes = self._read(uploaded(path) if path else b"")
            if settings.get("model", self.suite.model) not in self._models():
                settings.pop("model")
                notes.append("The model that made it is not on offer here.")
            found = [name for name in self.fields if name in settings]
            labels = [getattr(self.fields[name], "label", name) for name in found]
            values = [settings.get(name, gr.skip()) for name in self.fields]
            model = settings.get("model")
            return [
                _cards.restored(list(dict.fromkeys(labels)), notes),
                None,
                *((model, self._header(model)) if model else [gr.skip()] * 2),
                *values,
            ]

    def _read(self, source: str | bytes) -> tuple[dict[str, Any], list[str]]:
        """Return the settings in a PNG by field name, and notes on them."""
        settings, notes = read_settings(source, self.condition)
        settings |= settings.pop("params", {})
        if self.canvas is not None:
            settings.pop("preprocessor", None)
        elif not settings.get("preprocessor", "-"):
            settings["preprocessor"] = self.annotator.preprocessors[0].name
        return settings, notes

    def _take_sent(self, sent: str) -> list[Any]:
        """Start from another app's result: its picture, its prompts, its model if it is here."""
        with plain_errors():
            if not sent:
                return [gr.skip()] * (3 + len(self.fields))
            path = sent_result(sent)
            settings, _ = read_settings(path)
            model = settings.get("model")
            model = model if model in self._models() else self.suite.model
            taken = {"image": path} | {n: settings[n] for n in PROMPTS if n in settings}
            values = self._defaults_of(model) | taken | self._from_sent(path, model)
            labels = [getattr(self.fields[name], "label", name) for name in taken]
            return [
                _cards.restored(labels, [], "Taken over"),
                model,
                self._header(model),
                *(values.get(name, gr.skip()) for name in self.fields),
            ]

    def _from_sent(self, path: str, model: str) -> dict[str, Any]:
        """Return what else this page takes of a result."""
        return {}

    def _look_at_loading(self, model: str) -> tuple[str, gr.Timer]:
        return self._header(model), gr.Timer(active=not self.suite.settled(model))

    def _given(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.fields, values, strict=True))

    def _save(self, result: GenerationResult) -> SavedResult:
        saved = save(result, Path(get_upload_folder()), self.suite.keep)
        self.results.temp_files |= {str(path) for path in saved.all()}  # for delete_cache
        return saved


def _as_drawn(path: str) -> dict[str, Any]:
    """Return a drawing on white as what a canvas holds, so that it can be drawn on further."""
    drawing = read_image(path)[0]
    paper = drawing * 0 + 255  # without it, a chequerboard would show through
    return {"background": paper, "layers": [as_layer(drawing)], "composite": drawing}
