"""The page's endpoint for programs: the same fields as arguments, by name, typed, with defaults."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from apps._files import SavedResult
from apps._job import Job
from apps._request import new_job
from apps._suite import Suite
from apps._widgets import ONE_AT_A_TIME, plain_errors
from core.condition import Condition
from core.params import Bounds, Control, controls
from core.request import GenerationRequest, GenerationResult

Save = Callable[[GenerationResult], SavedResult]
Outputs = tuple[Any, ...]
Answer = Callable[[dict[str, Any]], Iterator[Outputs]]
"""From raw values by argument to the endpoint's outputs."""

API_ORDER = (
    "image",
    "prompt",
    "added_prompt",
    "negative_prompt",
    "num_samples",
    "image_resolution",
    "detect_resolution",
    "steps",
    "strength",
    "guess_mode",
    "guidance_scale",
    "seed",
    "eta",
    "params",
    "preprocessor",
    "model",
    "control_start",
    "control_end",
)
"""The endpoint's arguments; the annotator's own settings stand in the place of "params"."""


def publish(
    condition: Condition,
    suite: Suite,
    fields: dict[str, gr.components.Component],
    save: Save,
) -> None:
    """Offer `/<name>` to gradio_client and MCP; call it inside the page's Blocks."""
    names = sorted(fields, key=lambda n: API_ORDER.index(n if n in API_ORDER else "params"))
    known = {**controls(GenerationRequest), **controls(condition.annotator.params)}
    offer(
        condition.name,
        f"{condition.blurb} Returns the control map, the generated images, the maps "
        "re-extracted from them, and a report with a seed and a score for each image.",
        {name: (fields[name], help_of(known.get(name))) for name in names},
        gr.Image(label="Control map", type="filepath", format="png", visible=False),
        answer(suite, lambda given: new_job(condition, suite, given), save, lambda maps: maps[0]),
    )


def offer(
    name: str,
    about: str,
    arguments: dict[str, tuple[gr.components.Component, str]],
    control_map: gr.components.Component,
    respond: Answer,
) -> None:
    """Offer `/<name>`: its arguments in their order, each with its widget and its help."""

    def generate(*values: Any) -> Iterator[Outputs]:
        yield from respond(dict(zip(arguments, values, strict=True)))

    # The name, the arguments and the docstring that Gradio and MCP show.
    generate.__name__ = name
    generate.__doc__ = "\n".join(
        [about, "Args:", *(f"    {name}: {told}" for name, (_, told) in arguments.items())]
    )
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    generate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            # Without a default of their own, arguments have their widget's value.
            inspect.Parameter(name, kind, default=inspect.Parameter.empty if not at else None)
            for at, name in enumerate(arguments)
        ]
    )
    gr.Button(visible=False).click(
        generate,
        [field for field, _ in arguments.values()],
        [
            control_map,
            gr.File(label="Images", file_count="multiple", visible=False),
            gr.File(label="Re-extracted maps", file_count="multiple", visible=False),
            gr.JSON(label="Report", visible=False),
        ],
        api_name=name,
        preprocess=False,
        **ONE_AT_A_TIME,
    )


def answer(
    suite: Suite,
    start: Callable[[dict[str, Any]], Job],
    save: Save,
    control_map: Callable[[list[str]], Any],
) -> Answer:
    """Return what runs one call; control_map picks the first output from the maps' files."""

    def run(given: dict[str, Any]) -> Iterator[Outputs]:
        with plain_errors():
            for report in start(given).run():
                if not isinstance(report, GenerationResult):
                    yield None, None, None, None  # a call whose caller has left ends here
                    continue
                suite.measured(report)
                saved = save(report)
                told = report.report()
                told["warnings"] = [*told["warnings"], *filter(None, [saved.note])]
                by_image = zip(*(maps.reextracted for maps in saved.maps), strict=True)
                yield (
                    control_map([str(maps.control_map) for maps in saved.maps]),
                    [str(path) for path in saved.images],
                    [str(path) for found in by_image for path in found],
                    told,
                )

    return run


def help_of(control: Control | None) -> str:
    """Say what an argument is, with its limits."""
    if control is None:
        return "The picture to start from."
    limits = f" ({control.low:g} to {control.high:g})" if isinstance(control, Bounds) else ""
    return f"{control.label}{limits}. {control.help}".strip()
