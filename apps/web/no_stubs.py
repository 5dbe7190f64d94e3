"""Lets Gradio be imported without the stubs (.pyi) that it writes for editors at every import.

Gradio 6.31 parses and renders the source of each of its components for them, a third of the time of
its import, and writes one beside ours too; it has no setting for that (findings/gradio_stubs.sh).
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

WRITER, WRITE = "gradio.component_meta", "create_or_modify_pyi"
"""The module that writes them, and the function there."""


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if hasattr(module, WRITE):  # a later Gradio may do without
            setattr(module, WRITE, lambda *_: None)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the writer, and only it."""
        found = PathFinder.find_spec(name, path, target) if name == WRITER else None
        if found is not None and found.origin is not None:
            found.loader = _Loader(name, found.origin)
        return found


def import_gradio_without_stubs() -> None:
    """Have Gradio write none in this process; of no effect where it is imported already."""
    sys.meta_path.insert(0, _Finder())
