"""A page's API endpoint: its fields as named, typed arguments with defaults."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from apps.web.files import File, RunFiles, SavedResult
from apps.web.html.results import STAGES, inline
from apps.web.jobs.compare import Pair
from apps.web.jobs.errors import sentence_of
from apps.web.jobs.job import Job, Partial
from apps.web.pages.widgets import SentPicture, plain_errors, runs_at_once
from apps.web.suite import Suite
from core.condition import Condition
from core.errors import SuiteError
from core.params import Bounds, Setting, plain, settings_of
from core.provenance import source_type_of
from core.request import PARAMS_ARGUMENT, SETTINGS, GenerationResult, Progress

MASK_ARGUMENT = 25
"""Where the mask stands among an endpoint's arguments."""
PICTURES = {
    "image": "The input picture: a file, a data URL or the address of a result.",
    "mask": "A picture of the same size, white where the input picture may change and black where "
    "it must not; without it all of it may. Not for drawings and ready maps.",
}
"""What is said of the arguments that are pictures."""

NOTHING_SAVED = (
    "The images were made, but the server's disk is full or cannot be written to: try again when "
    "whoever runs the server has made room."
)

Outputs = tuple[Any, ...]
Answer = Callable[[dict[str, Any]], Iterator[Outputs]]
"""From raw values by argument name to the endpoint's outputs."""


@dataclass(frozen=True)
class Endpoint:
    """The arguments and the description of `/<name>`."""

    about: str
    arguments: dict[str, tuple[gr.components.Component, str]]
    """In order, each with its widget and its help."""
    control_map: gr.components.Component
    pick: Callable[[list[str | None]], Any]
    """From the files of the control maps to the value of control_map."""

    def of_two_models(self) -> "Endpoint":
        """Return the endpoint that runs the same request with another model too."""
        image, *others = self.arguments
        other = gr.Textbox("", label="Other model", visible=False)
        about = "The other model, on the same base; empty for the first one."
        arguments = {image: self.arguments[image], "other": (other, about)}
        return replace(
            self,
            about=f"{self.about} Runs with two models and the same seeds: images and re-extracted "
            "maps are the first model's, then the other's; the report has \"models\", a report of "
            'each, and "warnings" if the other model failed.',
            arguments=arguments | {name: self.arguments[name] for name in others},
        )


def endpoint_of(condition: Condition, fields: dict[str, gr.components.Component]) -> Endpoint:
    """Return a condition's endpoint; call it inside the page's Blocks."""
    if "mask" in fields:
        fields = fields | {"mask": mask_argument()}
    names = sorted(fields, key=_order)
    known = {**SETTINGS, **settings_of(condition.annotator.params)}
    return Endpoint(
        f"{condition.blurb} Returns the control map, the generated images, the maps "
        "re-extracted from them, and a report with a seed and a score for each image.",
        {name: (fields[name], PICTURES.get(name) or help_of(known[name])) for name in names},
        gr.Image(label="Control map", type="filepath", format="png", visible=False),
        lambda maps: maps[0],
    )


def mask_argument() -> gr.Image:
    """Return the widget of a mask for programs, which send a picture instead of strokes."""
    picture = gr.Image(label="Mask", type="filepath", image_mode=None, format="png", visible=False)
    picture.data_model = SentPicture
    return picture


def _order(name: str) -> float:
    """Return a field's position among the arguments."""
    if name in PICTURES:
        return 0 if name == "image" else MASK_ARGUMENT
    return SETTINGS[name].order.argument if name in SETTINGS else PARAMS_ARGUMENT


def offer(name: str, endpoint: Endpoint, respond: Answer, runs: int) -> None:
    """Publish `/<name>` for gradio_client and MCP; at most `runs` run at once over all pages.

    Call it inside the page's Blocks.
    """
    outputs = [
        endpoint.control_map,
        gr.File(label="Images", file_count="multiple", visible=False),
        gr.File(label="Re-extracted maps", file_count="multiple", visible=False),
        gr.JSON(label="Report", visible=False),
    ]
    publish(name, endpoint.about, endpoint.arguments, outputs, respond, runs)


def publish(
    name: str,
    about: str,
    arguments: dict[str, tuple[gr.components.Component, str]],
    outputs: list[gr.components.Component],
    respond: Answer,
    runs: int,
) -> None:
    """Publish `/<name>` with arguments as in Endpoint, and outputs of which the last is a report.

    Call it inside the page's Blocks.
    """

    def generate(*values: Any) -> Iterator[Outputs]:
        yield from respond(dict(zip(arguments, values, strict=True)))

    # Gradio and MCP show its name, signature and docstring.
    generate.__name__ = name
    generate.__doc__ = "\n".join(
        [about, "Args:", *(f"    {name}: {text}" for name, (_, text) in arguments.items())]
    )
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    generate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            # Only the picture is required; for None, Gradio and calls.py take the widget's value.
            inspect.Parameter(name, kind, default=inspect.Parameter.empty if not at else None)
            for at, name in enumerate(arguments)
        ]
    )
    gr.Button(visible=False).click(
        generate,
        [field for field, _ in arguments.values()],
        outputs,
        api_name=name,
        preprocess=False,
        **runs_at_once(runs),
    )


def answer(
    suite: Suite,
    start: Callable[[dict[str, Any]], Job | Pair],
    new_files: Callable[[], RunFiles],
    pick: Callable[[list[str | None]], Any],
) -> Answer:
    """Return the function that runs one call; `pick` as in Endpoint."""

    def run(given: dict[str, Any]) -> Iterator[Outputs]:
        with plain_errors(as_html=False):
            job = start(given)
            running = Running(job)
            made: list[tuple[GenerationResult, SavedResult]] = []
            failed = []
            files = new_files()
            try:
                for report in job.run():
                    if isinstance(report, GenerationResult):
                        if not report.controls:  # stopped before its maps were drawn
                            continue
                        suite.measured(report)
                        made.append((report, files.save(report)))
                        files = new_files()  # for the other model
                    elif isinstance(report, Partial):
                        files.save(report.result)  # now, so that nothing later can lose them
                    else:
                        # Ends here if the caller has disconnected.
                        yield None, None, None, running.told(report, len(made))
            except Exception as error:
                if not made:
                    raise
                failed.append(f"The other model failed: {sentence_of(error)}")
            if not made:
                return
            reports = [_report(*one) for one in made]
            by_image = [
                found
                for _, saved in made
                for found in zip(*(maps.reextracted for maps in saved.maps), strict=True)
            ]
            images = paths_of(file for _, saved in made for file in saved.images)
            if not images and made[0][0].images:
                raise SuiteError(NOTHING_SAVED)
            yield (
                pick([next(iter(paths_of([maps.control_map])), None) for maps in made[0][1].maps]),
                images,
                paths_of(file for found in by_image for file in found),
                {"models": reports, "warnings": failed} if isinstance(job, Pair) else reports[0],
            )

    return run


class Running:
    """What an endpoint tells while a job runs, in the place of the report and as Gradio's progress.

    {"stage", "step", "steps", "image", "images", "seconds_left"}, and where there is one a
    "preview", a data URL; while it waits "ahead", the requests before it; of a download also its
    "bytes" and "bytes_in_all"; of two models "model".
    """

    def __init__(self, job: Job | Pair):
        self._images = job.request.num_samples
        self._source_type = source_type_of(job.request)
        self._models = job.models if isinstance(job, Pair) else ()
        self._last = Progress("wait", 0, job.request.steps_taken, 0, None, None)

    def told(self, report: Progress | None, models_done: int) -> dict[str, Any]:
        """Return the report as JSON; for None the last one again, without its preview."""
        if report is not None:
            if report.stage == "sample":
                gr.Progress()((report.step, report.steps), desc=STAGES["sample"], unit="steps")
            self._last = report
        now = self._last
        told = {
            "stage": now.stage,
            "step": now.step,
            "steps": now.steps,
            "image": min(now.image_index + 1, self._images),
            "images": self._images,
            "seconds_left": now.seconds_left,
        }
        if now.ahead:
            told["ahead"] = now.ahead
        if self._models:
            told["model"] = self._models[min(models_done, len(self._models) - 1)]
        if now.download is not None:
            told |= {"bytes": now.download.bytes_here, "bytes_in_all": now.download.bytes_whole}
        if report is not None and report.preview is not None:
            told["preview"] = inline(report.preview, self._source_type)
        return told


def paths_of(files: Iterable[File]) -> list[str]:
    """Return the paths of the files that are on the disk."""
    return [str(file) for file in files if isinstance(file, Path)]


def _report(result: GenerationResult, saved: SavedResult) -> dict[str, Any]:
    report = result.report()
    return report | {"warnings": [*report["warnings"], *filter(None, [saved.note])]}


def help_of(setting: Setting) -> str:
    """Return an argument's description with its limits."""
    limits = (
        f" ({plain(setting.low)} to {plain(setting.high)})" if isinstance(setting, Bounds) else ""
    )
    return f"{setting.label}{limits}. {setting.help}".strip()
