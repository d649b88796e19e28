"""Make transformers' Auto classes know SpatialVLA, without making `import spatialvla_ft` heavy.

Simulation workers, dataset writers and `--help` import this package in processes that must not load
torch (TensorFlow and torch do not share a process). So each Auto class is told about our classes
right after transformers itself loads that Auto class, through Python's import hooks; whether
transformers was imported before or after this package makes no difference.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType


REGISTERS_ITSELF = {
    "transformers.models.auto.configuration_auto": "spatialvla_ft.models.configuration_spatialvla",
    "transformers.models.auto.modeling_auto": "spatialvla_ft.models.modeling_spatialvla",
    "transformers.models.auto.processing_auto": "spatialvla_ft.models.processing_spatialvla",
}
"""Auto class module of transformers: the module of ours that registers with it when imported."""


class _AfterImport(importlib.abc.MetaPathFinder):
    """Import our module once theirs was executed; finding theirs is left to the other finders."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        ours = REGISTERS_ITSELF.get(fullname)
        if ours is None:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(ours)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register now what transformers has loaded already, and the rest when it loads it."""
    for theirs, ours in REGISTERS_ITSELF.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
    sys.meta_path.insert(0, _AfterImport())
