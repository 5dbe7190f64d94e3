"""The apps: one file for each, a condition or a tool; the folder is the list."""

import importlib
import pkgutil

from apps.web.tool import Tool
from core.condition import Condition


def names() -> list[str]:
    """Return the apps' names, in alphabetical order, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def find(name: str) -> Condition | Tool:
    """Return the app of a name: what its file calls CONDITION or TOOL."""
    module = importlib.import_module(f"{__name__}.{name}")
    app: Condition | Tool = module.TOOL if hasattr(module, "TOOL") else module.CONDITION
    return app


def conditions() -> list[Condition]:
    """Return the condition of every app that has one, in the order of their names."""
    return [app for app in map(find, names()) if isinstance(app, Condition)]
