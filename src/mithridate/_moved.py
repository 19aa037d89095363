"""Modules that have moved: their old names lead to the new ones for one release, with a DeprecationWarning."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

_NEW_NAMES = {
    "mithridate.trainer": "mithridate.training.trainer",
    "mithridate.grads": "mithridate.training.gradients",
    "mithridate.hooks": "mithridate.training.activations",
    "mithridate.sidedata": "mithridate.training.side_data",
    "mithridate.cpu_head": "mithridate.training.cpu_head",
    "mithridate.masks": "mithridate.repairs.masks",
    "mithridate.linears": "mithridate.repairs.linears",
    "mithridate.calibration": "mithridate.repairs.input_norms",
}


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an old name, and gives the very module of the new one for it: its classes exist once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in _NEW_NAMES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, _NEW_NAMES[module.__name__]
        warnings.warn(
            f"{old} is now {new}; the old name goes with the next release.", DeprecationWarning, stacklevel=2
        )
        sys.modules[old] = importlib.import_module(new)  # which the import system then returns


def install() -> None:
    """Makes the old names importable; called once, by the package itself."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
