"""Modules that have moved are still found under their old names."""

import importlib
import sys

import pytest

from mithridate._moved import _NEW_NAMES


@pytest.mark.parametrize("old", _NEW_NAMES)
def test_an_old_module_name_gives_the_very_module_of_the_new_one_and_warns(old: str):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=_NEW_NAMES[old]):
        module = importlib.import_module(old)
    assert module is importlib.import_module(_NEW_NAMES[old])


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mithridate.never_was")
