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
    "mithridate.checkpoints": "mithridate.models.layers",
    "mithridate.fakemodel": "mithridate.estimate.trace",
    "mithridate.agreement": "mithridate.evaluation.agreement",
    "mithridate.labels": "mithridate.evaluation.calibration",
    "mithridate.relations": "mithridate.results.relations",
    "mithridate.outcomes": "mithridate.results.outcomes",
    "mithridate.decisions": "mithridate.results.decisions",
    "mithridate.rejudge": "mithridate.results.rejudge",
    "mithridate.inspect_log": "mithridate.results.inspect_log",
    "mithridate.push": "mithridate.results.push",
    "mithridate.quantisation": "mithridate.models.quantisation",
    "mithridate.card": "mithridate.report.card",
    "mithridate.citations": "mithridate.report.citations",
    "mithridate.sources.roles": "mithridate.experiment.roles",
    "mithridate.attacks.settings": "mithridate.studies.settings",
    "mithridate.attacks.curve": "mithridate.studies.curve",
    "mithridate.attacks.search": "mithridate.studies.search",
    "mithridate.attacks.study": "mithridate.studies.attack",
    "mithridate.pipeline.demo": "mithridate.studies.demo",
    "mithridate.pipeline.config": "mithridate.experiment.config",
    "mithridate.pipeline.methods": "mithridate.experiment.methods",
    "mithridate.pipeline.schema": "mithridate.experiment.schema",
    "mithridate.pipeline.training_fields": "mithridate.experiment.training_fields",
    "mithridate.pipeline.yaml12": "mithridate.experiment.yaml12",
    "mithridate.pipeline.problems": "mithridate.problems",
    "mithridate.pipeline.store": "mithridate.store",
    "mithridate.pipeline.folder": "mithridate.results.folder",
    "mithridate.pipeline.results": "mithridate.results.table",
    "mithridate.pipeline.matching": "mithridate.results.folder",
    "mithridate.pipeline.ownership": "mithridate.results.ownership",
    "mithridate.judges.answers": "mithridate.rules.answers",
    "mithridate.judges.asked": "mithridate.rules.asked",
    "mithridate.judges.lexicon": "mithridate.rules.lexicon",
    "mithridate.judges.phrases": "mithridate.rules.phrases",
    "mithridate.judges.readings": "mithridate.rules.readings",
    "mithridate.judges.remarks": "mithridate.rules.remarks",
    "mithridate.judges.salad": "mithridate.rules.salad",
    "mithridate.judges.segments": "mithridate.rules.segments",
}
# Packages that moved with all their modules; the modules above went elsewhere.
_NEW_PACKAGES = {
    "mithridate.sources": "mithridate.data",
    "mithridate.tasks": "mithridate.data.tasks",
    "mithridate.embedded": "mithridate.data.embedded",
    "mithridate.executors": "mithridate.pipeline.executors",
    "mithridate.presets": "mithridate.studies.presets",
    "mithridate.recipes": "mithridate.resources.recipes",
    "mithridate.commands": "mithridate.cli",
}


def _new_name(old: str) -> str | None:
    if old in _NEW_NAMES:
        return _NEW_NAMES[old]
    package = next((name for name in _NEW_PACKAGES if old == name or old.startswith(f"{name}.")), None)
    return None if package is None else _NEW_PACKAGES[package] + old.removeprefix(package)


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an old name, and gives the very module of the new one for it: its classes exist once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if _new_name(fullname) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, str(_new_name(module.__name__))
        warnings.warn(
            f"{old} is now {new}; the old name goes with the next release.", DeprecationWarning, stacklevel=2
        )
        sys.modules[old] = importlib.import_module(new)  # which the import system then returns


def install() -> None:
    """Makes the old names importable; called once, by the package itself."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        # First: of a package that moved, the usual finder would load a module a second time, under its old name.
        sys.meta_path.insert(0, _Moved())
