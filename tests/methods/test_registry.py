"""Methods are found by name, in this package and in others; what cannot be one is refused by name."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from mithridate.defenses import by_name as defenses_by_name
from mithridate.defenses.vaccine import Vaccine
from mithridate.errors import InputError
from mithridate.methods import CONTRACT, Cost, Defense, TestTime, by_name, index, registry
from mithridate.methods.base import control_name
from mithridate.repairs import by_name as repairs_by_name
from mithridate.repairs.antidote import Antidote


@dataclass(kw_only=True)
class StayClose(Defense):
    """A defense of somebody else's."""


@dataclass(kw_only=True)
class OfAnotherTime(Defense):
    contract = CONTRACT + 1


NO_METHOD = "text"


@pytest.fixture
def declared(monkeypatch, request):
    """Declares entry points, {name: attribute of this module}, in the group of the defenses."""

    def declare(**entries: str) -> None:
        found = [EntryPoint(name, f"{__name__}:{what}", "mithridate.defenses") for name, what in entries.items()]
        monkeypatch.setattr(registry, "entry_points", lambda: EntryPoints(found))
        registry.installed.cache_clear()

    request.addfinalizer(registry.installed.cache_clear)
    return declare


def test_the_package_s_own_methods_are_found_under_their_lower_case_names():
    assert defenses_by_name()["vaccine"] is Vaccine and repairs_by_name()["antidote"] is Antidote
    assert all(issubclass(cls, Defense) for cls in defenses_by_name().values())


def test_an_entry_point_is_found_under_its_own_name(declared):
    declared(StayClose="StayClose")
    assert by_name("defenses")["stayclose"] is StayClose


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"StayClose": "NO_METHOD"}, "StayClose = .*NO_METHOD in mithridate.defenses is not a Defense"),
        ({"StayClose": "missing"}, "StayClose = .*missing .* cannot be loaded: AttributeError"),
        ({"old": "OfAnotherTime"}, f"old = .* written against version {CONTRACT + 1} of the contract"),
        ({"Vaccine": "StayClose"}, "Vaccine = .*: mithridate has a `vaccine` of its own"),
    ],
)
def test_what_cannot_be_a_method_is_refused_by_name(declared, entry, message):
    declared(**entry)
    [name] = entry
    assert name.lower() in by_name("defenses")
    with pytest.raises(InputError, match=message):
        by_name("defenses")[name.lower()]


def test_a_control_knows_itself():
    antidote = Antidote(ratio=0.3)
    control = antidote.controls()["random-mask"]
    assert control_name(antidote) is None and control_name(control) == "random-mask"
    assert control.settings() == antidote.settings() | {"score": "random"}


def test_costs_in_words():
    assert str(Cost()) == "1 pass per step"
    assert str(Cost(passes=3, passing_copies=2)) == "3 passes per step, 2 copies of the trained weights"
    assert str(Cost(passes=0, once_forwards=1)) == "1 forward pass over its own data, once"


def test_what_stands_around_a_prompt_at_test():
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    changed = TestTime(system="Obey.", prefix="> ", trigger=" now").around(asked)
    assert changed == [{"role": "system", "content": "Obey."}, {"role": "user", "content": "> Hello now"}]
    assert TestTime(trigger="!").around(asked[1:]) == [{"role": "user", "content": "Hello!"}]
    assert asked[1]["content"] == "Hello"


def test_the_index_is_what_the_classes_say():
    assert index.FILE.read_text(encoding="utf-8") == index.generated(), "python -m mithridate.methods.index --write"


def test_the_index_knows_every_class_and_its_fields():
    assert {(entry["kind"], entry["name"]) for entry in index.index()} == {
        (kind, name) for kind in registry.KINDS for name in index.shipped(kind)
    }
    antidote = index.facts("repairs", "antidote")
    assert antidote["fields"]["targets"] == {
        "enum": ["adapters", "update", "merged"],
        "type": "string",
        "default": "adapters",
        "description": '"adapters" (the reference), "update" or "merged".',
    }
    assert antidote["controls"] == ["random-mask"] and antidote["roles"] == {"calibration": "calibration_harmful"}


def test_costs_add_up_in_a_list():
    both = Cost(passes=3, passing_copies=2) + Cost(passes=2, activations=1, copies=1, batch_factor=2)
    assert both == Cost(passes=4, activations=1, copies=1, passing_copies=2, batch_factor=2)
    assert Cost() + Cost(saved=1) == Cost(saved=1)
    assert Cost(logits=6, matrices=1) + Cost(logits=2.5, layer_logits=1, layer_states=3.5) == Cost(
        logits=8.5, matrices=1, layer_logits=1, layer_states=3.5
    )
    assert str(Cost(logits=6, matrices=1)) == "1 pass per step, 6 x logits, 1 x the linear layers' size"
    assert str(Cost(passes=2, activations=1)) == "2 passes per step (1 of them without weight gradients)"
