"""The page's endpoint for programs: the same fields as arguments, by name, typed, with defaults."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from apps._files import SavedResult
from apps._request import new_job
from apps._suite import Suite
from apps._widgets import ONE_AT_A_TIME, plain_errors
from core.condition import Condition
from core.params import Bounds, Control, controls
from core.request import GenerationRequest, GenerationResult

Save = Callable[[GenerationResult], SavedResult]
Outputs = tuple[Any, ...]

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
    gr.Button(visible=False).click(
        _described(_endpoint(condition, suite, names, save), condition, names),
        [fields[name] for name in names],
        [
            gr.Image(label="Control map", type="filepath", format="png", visible=False),
            gr.File(label="Images", file_count="multiple", visible=False),
            gr.File(label="Re-extracted maps", file_count="multiple", visible=False),
            gr.JSON(label="Report", visible=False),
        ],
        api_name=condition.name,
        preprocess=False,
        **ONE_AT_A_TIME,
    )


def _endpoint(
    condition: Condition, suite: Suite, names: list[str], save: Save
) -> Callable[..., Iterator[Outputs]]:
    def generate(*values: Any) -> Iterator[Outputs]:
        with plain_errors():
            job = new_job(condition, suite, dict(zip(names, values, strict=True)))
            for report in job.run():
                if not isinstance(report, GenerationResult):
                    yield None, None, None, None  # a call whose caller has left ends here
                    continue
                suite.measured(report)
                saved = save(report)
                told = report.report()
                told["warnings"] = [*told["warnings"], *filter(None, [saved.note])]
                yield (
                    str(saved.control_map),
                    [str(path) for path in saved.images],
                    [str(path) for path in saved.reextracted],
                    told,
                )

    return generate


def _described(
    generate: Callable[..., Iterator[Outputs]], condition: Condition, names: list[str]
) -> Callable[..., Iterator[Outputs]]:
    """Give the function the name, the arguments and the docstring that Gradio and MCP show."""
    known = {**controls(GenerationRequest), **controls(condition.annotator.params)}
    generate.__name__ = condition.name
    generate.__doc__ = "\n".join(
        [
            f"{condition.blurb} Returns the control map, the generated images, the maps "
            "re-extracted from them, and a report with a seed and a score for each image.",
            "Args:",
            *(f"    {name}: {_help(known.get(name))}" for name in names),
        ]
    )
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    generate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in names]
    )
    return generate


def _help(control: Control | None) -> str:
    if control is None:
        return "The picture to start from."
    limits = f" ({control.low:g} to {control.high:g})" if isinstance(control, Bounds) else ""
    return f"{control.label}{limits}. {control.help}".strip()
