"""A page that generates images, for one control or several: its parts and their events.

layout.py has the widgets, prefill.py fills them, runs.py runs the jobs; condition_page.py (one) and
several_page.py (several) have what depends on the controls.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from apps.batch.uploads import UploadRun
from apps.web.files import new_folder, upload_folder
from apps.web.html import results
from apps.web.jobs.compare import Pair, new_pair, rivals
from apps.web.jobs.effects import DECIDING, DEPENDENT, without_effect
from apps.web.jobs.errors import sentence_of
from apps.web.jobs.live import Live, live_values
from apps.web.pages.canvas import Canvas, put_away
from apps.web.pages.endpoint import answer, offer
from apps.web.pages.layout import Controls, Layout
from apps.web.pages.prefill import Prefill
from apps.web.pages.prompt import wire_help, wire_style
from apps.web.pages.runs import CurrentJob, Runs
from apps.web.pages.visitors import visitor_of
from apps.web.pages.widgets import AT_ONCE, FEW_AT_ONCE, PRIVATE, runs_at_once
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import Condition
from core.request import SETTINGS

KEEP = """(...values) => {
  try {
    sessionStorage.setItem("KEY", JSON.stringify(values));
  } catch (error) {
    console.warn(error); // full, or forbidden: what all tabs share is left
  }
  return [values];
}"""
"""Keeps the fields' values for all tabs and, as another tab of the app has others, for this one."""
KEPT = """(shared) => {
  const isRestoring = document.documentElement.classList.contains("cl-restoring"); // history.js
  if (isRestoring || /[?&](from|map)=/.test(location.search)) return [null];
  try {
    return [JSON.parse(sessionStorage.getItem("KEY")) ?? shared];
  } catch (error) {
    console.warn(error);
    return [shared];
  }
}"""


class Page:
    """The page of an app; build it inside its Blocks."""

    def __init__(
        self,
        blocks: gr.Blocks,
        app: Condition | Tool,
        suite: Suite,
        controls: Controls,
        send_to: Sequence[Condition | Tool] = (),
    ):
        self.suite = suite
        self.controls = controls
        self.layout = Layout(app, suite, controls)
        self.prefill = Prefill(self.layout, suite, controls)
        self.runs = Runs(app, suite, send_to)
        self._wire_runs()
        self._wire_settings()
        wire_help(blocks, self.layout.fields)
        wire_style(suite, self.layout.style, self.layout.fields)
        controls.wire(self.layout.fields, self.layout.examples)
        if "edit" in self.layout.fields:
            self._wire_live()
        self._wire_sent(blocks)
        if "mask" in self.layout.fields:
            self._wire_mask()
        brought = [self.restored.then]
        if isinstance(app, Condition):
            brought.append(self._wire_memory(blocks, app).then)
        controls.reopen_editor(self.layout.fields, *brought)
        self._publish(app.name)

    def _publish(self, name: str) -> None:
        """Publish the endpoint `/<name>`, and `/<name>_compare` if there are models to compare."""
        endpoint, runs = self.controls.endpoint(self.layout.fields), self.suite.runs
        answered = answer(self.suite, self.controls.job, self.runs.new_files, endpoint.pick)
        offer(name, endpoint, answered, runs)
        models, weights = self.controls.models(), self.controls.weights
        if any(rivals(self.suite, model, weights) for model in models):
            compared = answer(self.suite, self._new_pair, self.runs.new_files, endpoint.pick)
            offer(f"{name}_compare", endpoint.of_two_models(), compared, runs)

    def _wire_runs(self) -> None:
        layout, fields = self.layout, list(self.layout.fields.values())
        ways: list[tuple[gr.Button, Callable[..., Any], list[Any]]] = [
            (layout.run_button, self._begin, []),
            (layout.compare_button, self._begin_pair, [layout.other_model]),
        ]
        if layout.many is not None:
            files, button = layout.many
            ways.append((button, self._begin_many, [files]))
        shown = [layout.run_button, layout.stop_button, layout.stage, layout.result_cards]
        for button, begin, own_inputs in ways:
            begun = button.click(
                begin,
                [layout.current, *own_inputs, *fields],
                shown,
                preprocess=False,
                **FEW_AT_ONCE,
                **PRIVATE,
            )
            ran = begun.success(
                self.runs.generate,
                [layout.current],
                [layout.stage, layout.result_cards, layout.last_seed],
                **runs_at_once(self.suite.runs),
                **PRIVATE,
            )
            for ended in (ran.then, ran.failure):  # Gradio 6 skips `then` after a failure
                ended(
                    self._settle,
                    [layout.current, layout.fields["model"]],
                    [*shown, layout.header],
                    queue=False,
                    **PRIVATE,
                )
        layout.stop_button.click(
            self.runs.stop, [layout.current], [layout.stop_button], queue=False, **PRIVATE
        )

    def _wire_settings(self) -> None:
        layout, fields = self.layout, self.layout.fields
        fields["model"].change(
            self._offer_comparison,
            [fields["model"]],
            [layout.compare_button, layout.other_model],
            queue=False,
            **PRIVATE,
        )
        for box, css_class in (
            (layout.invert_box, "cl-invert"),
            (layout.best_first_box, "cl-best-first"),
        ):
            box.change(
                None,
                [box],
                None,
                js=f"(on) => {{document.body.classList.toggle('{css_class}', on)}}",
            )
        layout.examples.click(
            self.prefill.take_example,
            [layout.examples],
            [fields["edit" if self.prefill.takes_drawings else "image"], fields["prompt"]],
            queue=False,
            **PRIVATE,
        )
        for name in DECIDING:
            fields[name].change(
                self._tell_effects,
                [fields[name] for name in DECIDING],
                [fields[name] for name in DEPENDENT],
                preprocess=False,
                queue=False,
                **PRIVATE,
            )
        layout.picked_seed.input(
            None, [layout.picked_seed], [fields["seed"]], js="(seed) => seed", **PRIVATE
        )
        layout.random_button.click(lambda: -1, None, [fields["seed"]], queue=False, **PRIVATE)
        layout.reuse_button.click(
            lambda seed: seed, [layout.last_seed], [fields["seed"]], queue=False, **PRIVATE
        )
        fields["model"].input(
            self.prefill.change_model,
            [layout.shown_model, *fields.values()],
            self.prefill.outputs,
            preprocess=False,
            **AT_ONCE,
            **PRIVATE,
        )
        self.restored = layout.restore_file.upload(
            self.prefill.restore,
            [layout.restore_file, layout.shown_model, *fields.values()],
            self.prefill.outputs,
            preprocess=False,
            **FEW_AT_ONCE,
            **PRIVATE,
        )
        loading = gr.Timer(1.5)
        loading.tick(
            self._look_at_loading,
            [fields["model"]],
            [layout.header, loading],
            queue=False,
            **PRIVATE,
        )

    def _wire_sent(self, blocks: gr.Blocks) -> None:
        """Take the result that another app sent, if the page's address names one."""
        sent, control_map = gr.Textbox(visible=False), gr.Textbox(visible=False)
        blocks.load(
            self.prefill.take_sent,
            [sent, control_map],
            self.prefill.outputs,
            js="() => ['from', 'map'].map((name) => "
            "new URLSearchParams(location.search).get(name) ?? '')",
            **AT_ONCE,
            **PRIVATE,
        )

    def _wire_memory(self, blocks: gr.Blocks, condition: Condition) -> Any:
        """Keep the settings in the browser alone, so that they survive a reload.

        Returns the event that brings them back.
        """
        fields = list(self.layout.fields.values())
        # Nothing in it is secret: it is the visitor's own, and stays with them.
        key = f"controlloop-{condition.name}"
        memory = gr.BrowserState(None, storage_key=key, secret="open")
        gr.on(
            [field.change for field in fields],
            None,
            fields,
            [memory],
            js=KEEP.replace("KEY", key),
            **PRIVATE,
        )
        return blocks.load(
            lambda kept: self.prefill.take_remembered(kept, condition),
            [memory],
            self.prefill.outputs,
            js=KEPT.replace("KEY", key),
            **AT_ONCE,
            **PRIVATE,
        )

    def _wire_mask(self) -> None:
        """Open the panel for painting a mask, and close it for another picture."""
        layout, fields = self.layout, list(self.layout.fields.values())
        mask = layout.fields["mask"]
        assert isinstance(mask, Canvas)
        panel = [layout.mask_panel, mask]
        event: dict[str, Any] = {"preprocess": False, **FEW_AT_ONCE, **PRIVATE}
        layout.mask_button.click(self.prefill.open_mask, fields, panel, **event)
        self.restored.then(self.prefill.show_mask, fields, panel, **event)
        begins_anew = (layout.unmask_button.click, layout.fields["image"].change)
        kept = put_away(mask, layout.mask_panel, layout.back_button, *begins_anew)
        with_kept = [kept if field is mask else field for field in fields]
        layout.back_button.click(self.prefill.open_mask, with_kept, panel, **event)

    def _wire_live(self) -> None:
        """Make a picture at once whenever the canvas asks for one."""
        layout = self.layout
        canvas = layout.fields["edit"]
        assert isinstance(canvas, Canvas)
        canvas.live(
            self._draw_live,
            [layout.current, layout.live, *layout.fields.values()],
            [layout.stage, layout.fields["seed"]],
            preprocess=False,
            queue=False,  # straight to the pipeline, which orders the requests
            trigger_mode="multiple",
            **PRIVATE,
        )

    def _draw_live(
        self, request: gr.Request, current: CurrentJob, live: Live, *values: Any
    ) -> tuple[Any, Any]:
        """Return the stage and the seed; both stay while a run has the stage."""
        if current.job is not None:
            return gr.skip(), gr.skip()
        try:
            given = live_values(self.suite, self.layout.values_of(values), live.seed)
            with self.suite.visits.one_of(visitor_of(request.request, request.username)):
                result = live.picture(lambda: self.controls.job(given))
        except Exception as error:  # noqa: BLE001 - shown to the user; a bug is logged
            return results.note(sentence_of(error)), gr.skip()
        if result is None or current.job is not None:
            return gr.skip(), gr.skip()
        return results.live(result), result.seeds[0]

    def _begin(self, current: CurrentJob, *values: Any) -> tuple[Any, ...]:
        return self.runs.begin(current, lambda: self.controls.job(self.layout.values_of(values)))

    def _begin_pair(self, current: CurrentJob, other: Any, *values: Any) -> tuple[Any, ...]:
        """Begin a run with two models."""
        return self.runs.begin(
            current, lambda: self._new_pair({"other": other} | self.layout.values_of(values))
        )

    def _begin_many(self, current: CurrentJob, files: Any, *values: Any) -> tuple[Any, ...]:
        """Begin a run with every picture of a list of files."""
        condition, given = self.runs.app, self.layout.values_of(values)
        assert isinstance(condition, Condition)  # others have no such button
        return self.runs.begin(
            current,
            lambda: UploadRun(self.suite, condition, given, files, new_folder(upload_folder())),
        )

    def _new_pair(self, given: dict[str, Any]) -> Pair:
        other = given.pop("other")
        return new_pair(self.suite, self.controls.job(given), other)

    def _settle(self, current: CurrentJob, model: str) -> tuple[Any, ...]:
        header = self.layout.header_of(model, current.speeds.get(model, ""))
        return *self.runs.settle(current), header

    def _tell_effects(self, *values: Any) -> list[Any]:
        """Return updates that disable the settings without effect and say why."""
        idle = without_effect(dict(zip(DECIDING, values, strict=True)))
        return [
            gr.update(interactive=name not in idle, info=idle.get(name, SETTINGS[name].help))
            for name in DEPENDENT
        ]

    def _offer_comparison(self, model: str) -> tuple[gr.Button, gr.Dropdown]:
        button, choice = self.layout.comparison(model)
        return gr.Button(**button), gr.Dropdown(**choice)

    def _look_at_loading(self, model: str) -> tuple[str, gr.Timer]:
        done = self.suite.has_finished_loading(model)
        return self.layout.header_of(model), gr.Timer(active=not done)
