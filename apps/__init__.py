"""The apps: one file each, for a condition or a tool; the folder is the list."""

import importlib
import pkgutil

from apps.web.tool import Tool
from core.condition import Condition


def names() -> list[str]:
    """Return the apps' names, in alphabetical order, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def find(name: str) -> Condition | Tool:
    """Return an app by name: the CONDITION or TOOL of its file."""
    module = importlib.import_module(f"{__name__}.{name}")
    app: Condition | Tool = module.TOOL if hasattr(module, "TOOL") else module.CONDITION
    return app


def conditions() -> list[Condition]:
    """Return the conditions of all apps that have one, by name."""
    return [app for app in map(find, names()) if isinstance(app, Condition)]
