"""The page's endpoint for programs: the same fields as arguments, by name, typed, with defaults."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from apps.web.files import SavedResult
from apps.web.jobs.compare import Pair
from apps.web.jobs.errors import sentence_of
from apps.web.jobs.job import Job
from apps.web.pages.widgets import plain_errors, together
from apps.web.suite import Suite
from core.condition import Condition
from core.params import Bounds, Setting, settings_of
from core.request import PARAMS_ARGUMENT, SETTINGS, GenerationResult

Save = Callable[[GenerationResult], SavedResult]
Outputs = tuple[Any, ...]
Answer = Callable[[dict[str, Any]], Iterator[Outputs]]
"""From raw values by argument to the endpoint's outputs."""


@dataclass(frozen=True)
class Endpoint:
    """What `/<name>` takes and says of itself."""

    about: str
    arguments: dict[str, tuple[gr.components.Component, str]]
    """In their order, each with its widget and its help."""
    control_map: gr.components.Component
    pick: Callable[[list[str]], Any]
    """From the files of the controls' maps to the value of control_map."""

    def of_two_models(self) -> "Endpoint":
        """Return what runs the same with another model too."""
        image, *others = self.arguments
        other = gr.Textbox("", label="Other model", visible=False)
        told = "The model to compare with, of the same base; empty for the first there is."
        arguments = {image: self.arguments[image], "other": (other, told)}
        return replace(
            self,
            about=f"{self.about} Does so with two models, seed for seed: the images, and the maps "
            "found in them, are the first model's, then the other's; the report has \"models\", a "
            'report of each, and in "warnings" why there is only the first\'s.',
            arguments=arguments | {name: self.arguments[name] for name in others},
        )


def endpoint_of(condition: Condition, fields: dict[str, gr.components.Component]) -> Endpoint:
    """Return a condition's endpoint; call it inside the page's Blocks."""
    names = sorted(fields, key=_order)
    known = {**SETTINGS, **settings_of(condition.annotator.params)}
    return Endpoint(
        f"{condition.blurb} Returns the control map, the generated images, the maps "
        "re-extracted from them, and a report with a seed and a score for each image.",
        {name: (fields[name], help_of(known.get(name))) for name in names},
        gr.Image(label="Control map", type="filepath", format="png", visible=False),
        lambda maps: maps[0],
    )


def _order(name: str) -> float:
    """Return where a condition's field stands among the arguments."""
    if name == "image":
        return 0
    return SETTINGS[name].order.argument if name in SETTINGS else PARAMS_ARGUMENT


def offer(name: str, endpoint: Endpoint, respond: Answer, runs: int) -> None:
    """Offer `/<name>` to gradio_client and MCP, for so many `runs` at once of all pages.

    Call it inside the page's Blocks.
    """
    arguments = endpoint.arguments

    def generate(*values: Any) -> Iterator[Outputs]:
        yield from respond(dict(zip(arguments, values, strict=True)))

    # The name, the arguments and the docstring that Gradio and MCP show.
    generate.__name__ = name
    generate.__doc__ = "\n".join(
        [endpoint.about, "Args:", *(f"    {name}: {told}" for name, (_, told) in arguments.items())]
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
            endpoint.control_map,
            gr.File(label="Images", file_count="multiple", visible=False),
            gr.File(label="Re-extracted maps", file_count="multiple", visible=False),
            gr.JSON(label="Report", visible=False),
        ],
        api_name=name,
        preprocess=False,
        **together(runs),
    )


def answer(
    suite: Suite,
    start: Callable[[dict[str, Any]], Job | Pair],
    save: Save,
    pick: Callable[[list[str]], Any],
) -> Answer:
    """Return what runs one call; `pick` as Endpoint has it."""

    def run(given: dict[str, Any]) -> Iterator[Outputs]:
        with plain_errors():
            job = start(given)
            made: list[tuple[GenerationResult, SavedResult]] = []
            failed = []
            try:
                for report in job.run():
                    if isinstance(report, GenerationResult):
                        suite.measured(report)
                        made.append((report, save(report)))
                    else:
                        yield None, None, None, None  # a call whose caller has left ends here
            except Exception as error:
                if not made:
                    raise
                failed.append(f"The other model's images were not made: {sentence_of(error)}")
            if not made:
                return
            told = [_told(*one) for one in made]
            by_image = [
                found
                for _, saved in made
                for found in zip(*(maps.reextracted for maps in saved.maps), strict=True)
            ]
            yield (
                pick([str(maps.control_map) for maps in made[0][1].maps]),
                [str(path) for _, saved in made for path in saved.images],
                [str(path) for found in by_image for path in found],
                {"models": told, "warnings": failed} if isinstance(job, Pair) else told[0],
            )

    return run


def _told(result: GenerationResult, saved: SavedResult) -> dict[str, Any]:
    told = result.report()
    return told | {"warnings": [*told["warnings"], *filter(None, [saved.note])]}


def help_of(setting: Setting | None) -> str:
    """Say what an argument is, with its limits."""
    if setting is None:
        return "The picture to start from."
    limits = f" ({setting.low:g} to {setting.high:g})" if isinstance(setting, Bounds) else ""
    return f"{setting.label}{limits}. {setting.help}".strip()
