"""Modules that have moved are still found under their old names."""

import importlib
import pkgutil
import sys

import pytest

from mithridate._moved import _NEW_NAMES, _NEW_PACKAGES


@pytest.mark.parametrize("old", _NEW_NAMES)
def test_an_old_module_name_gives_the_very_module_of_the_new_one_and_warns(old: str):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=_NEW_NAMES[old]):
        module = importlib.import_module(old)
    assert module is importlib.import_module(_NEW_NAMES[old])


@pytest.mark.parametrize("old", _NEW_PACKAGES)
def test_an_old_package_name_gives_the_new_package_and_its_modules_once(old: str):
    new = importlib.import_module(_NEW_PACKAGES[old])
    modules = [found.name for found in pkgutil.iter_modules(new.__path__)][:2]
    for name in [old, *(f"{old}.{module}" for module in modules)]:
        sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=_NEW_PACKAGES[old]):
        assert importlib.import_module(old) is new
        for module in modules:
            found = importlib.import_module(f"{old}.{module}")
            assert found is importlib.import_module(f"{_NEW_PACKAGES[old]}.{module}")


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mithridate.never_was")
