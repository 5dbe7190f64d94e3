"""Condition -> page: what happens when its widgets are used.

The widgets stand in layout.py, what fills them in prefill.py, and what a run shows in runs.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np

from apps.web.html import results
from apps.web.jobs.compare import Pair, new_pair
from apps.web.jobs.job import Job, drawn_map
from apps.web.jobs.request import checked_request, given_drawing, new_job
from apps.web.pages.endpoint import Endpoint, answer, endpoint_of, offer
from apps.web.pages.layout import MAP_LABEL
from apps.web.pages.prefill import Incoming
from apps.web.pages.runs import Runs, Turn
from apps.web.pages.widgets import AT_ONCE, CACHE, FEW_AT_ONCE, PRIVATE, plain_errors, together
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import Condition, RGBImage
from core.pipeline import map_notes


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


class Page(Incoming):
    """One condition's page; several_page makes another of it for several."""

    def build(self, page: gr.Blocks) -> None:
        """Fill the page; call it inside its Blocks."""
        self.place()
        self.runs = Runs(self.app, self.suite, self.send_to, self.results)
        self._wire()
        self._wire_map()
        if self.canvas is None:
            self._wire_sent(page)
        self._publish()

    def _publish(self) -> None:
        """Offer `/<name>` to gradio_client and MCP, and `/<name>_compare` if models compare."""
        endpoint, name = self._endpoint(), self.app.name
        answered = answer(self.suite, self._new_job, self.runs.save, endpoint.pick)
        offer(name, endpoint, answered, self.suite.runs)
        if any(self._rivals(model) for model in self._models()):
            compared = answer(self.suite, self._new_pair, self.runs.save, endpoint.pick)
            offer(f"{name}_compare", endpoint.of_two_models(), compared, self.suite.runs)

    def _endpoint(self) -> Endpoint:
        return endpoint_of(self.condition, self.fields)

    def _wire(self) -> None:
        fields = list(self.fields.values())
        for button, begin, more in (
            (self.run, self._begin, []),
            (self.compare, self._begin_pair, [self.other]),
        ):
            begun = self._with_drawing(button.click)(
                begin,
                [self.turn, *more, *fields],
                [self.run, self.stop, self.stage],
                preprocess=False,
                **FEW_AT_ONCE,
                **PRIVATE,
            )
            ran = begun.success(
                self.runs.generate,
                [self.turn, self.last_seed],
                [self.stage, self.results, self.last_seed],
                **together(self.suite.runs),
                **PRIVATE,
            )
            for ended in (ran.then, ran.failure):  # Gradio 6 has `then` left out after a failure
                ended(
                    self._settle,
                    [self.turn, self.fields["model"], self.last_seed],
                    [self.run, self.stop, self.stage, self.header],
                    queue=False,
                    **PRIVATE,
                )
        self.fields["model"].change(
            self._offer_comparison,
            [self.fields["model"]],
            [self.compare, self.other],
            queue=False,
            **PRIVATE,
        )
        self.stop.click(self.runs.stop, [self.turn], [self.stop], queue=False, **PRIVATE)
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

    def _with_drawing(self, trigger: Any) -> Any:
        """Return the trigger for what needs the picture; on a canvas the picture is taken first."""
        if self.canvas is None:
            return trigger
        taken = trigger(
            self._take_drawing,
            [self.canvas],
            [self.fields["image"]],
            preprocess=False,
            **FEW_AT_ONCE,
            **PRIVATE,
        )
        return taken.success

    def _take_drawing(self, drawing: Any) -> RGBImage:
        with plain_errors():
            return given_drawing(drawing)

    def _begin(self, turn: Turn, *values: Any) -> tuple[Any, ...]:
        return self.runs.begin(turn, lambda: self._new_job(self._given(values)))

    def _begin_pair(self, turn: Turn, other: Any, *values: Any) -> tuple[Any, ...]:
        """Begin the same with two models."""
        return self.runs.begin(turn, lambda: self._new_pair({"other": other} | self._given(values)))

    def _offer_comparison(self, model: str) -> tuple[gr.Button, gr.Dropdown]:
        button, choice = self._comparison(model)
        return gr.Button(**button), gr.Dropdown(**choice)

    def _settle(self, turn: Turn, model: str, last_seed: int) -> tuple[Any, ...]:
        return *self.runs.settle(turn, last_seed), self._header(model)

    def _new_job(self, given: dict[str, Any]) -> Job:
        return new_job(self.condition, self.suite, given)

    def _new_pair(self, given: dict[str, Any]) -> Pair:
        other = given.pop("other")
        return new_pair(self.suite, self._new_job(given), other)

    def _draw_map(self, *values: Any) -> Iterator[Any]:
        """Draw the map; while what it needs is downloaded, its label says how far that is."""
        with plain_errors():
            request, _ = checked_request(self.condition, self.suite, self._given(values))
            try:
                for report in drawn_map(self.suite.pipeline, self.condition, request):
                    if isinstance(report, np.ndarray):
                        # Beside the map, since what pops up is gone in a moment.
                        notes = map_notes(self.annotator, request, report)
                        label = ": ".join([MAP_LABEL, *notes])
                        shown = self.annotator.preview(report)
                        yield gr.Image(value=shown, label=label, visible=True)
                    elif report:
                        yield gr.Image(label=results.download_words(report), visible=True)
                    else:
                        yield gr.skip()  # a page whose visitor has left ends here
            except Exception:
                # Another map would pass for the one that was asked for.
                yield gr.Image(value=None, label=MAP_LABEL, visible=False)
                raise

    def _redraw_map(self, *values: Any) -> Iterator[Any]:
        """Follow a moving slider; without a picture there is nothing to follow."""
        if self._given(values)["image"]:
            yield from self._draw_map(*values)
        else:
            yield gr.skip()

    def _look_at_loading(self, model: str) -> tuple[str, gr.Timer]:
        return self._header(model), gr.Timer(active=not self.suite.has_finished_loading(model))
