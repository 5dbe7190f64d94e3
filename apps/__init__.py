"""The apps: one file for each condition; the folder is the list."""

import importlib
import pkgutil

from core.condition import Condition


def names() -> list[str]:
    """Return the apps' names, in alphabetical order, without importing them."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def conditions() -> list[Condition]:
    """Return the condition of every app, in the order of their names."""
    return [importlib.import_module(f"{__name__}.{name}").CONDITION for name in names()]
