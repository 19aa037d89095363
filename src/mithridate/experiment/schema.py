"""The JSON Schema of the experiment file, for editors: `mithridate schema`.

It is made from the types that check the file (`config.py`, the methods, SFTConfig), of which the latter two are read
from generated indexes, and holds the shorthands that the file allows. What it cannot say (values that depend on each
other, where a sweep's paths lead) only `run` checks.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mithridate import judges
from mithridate.data.tasks import TASKS
from mithridate.environment import version
from mithridate.experiment.adapter_fields import ALLOWED_IN_ADAPTER, NOT_IN_ADAPTER
from mithridate.experiment.model import HARMFUL, Adapter, Align, Budget, Evaluate, Experiment, Finetune
from mithridate.experiment.roles import ROLES
from mithridate.experiment.sources import Source
from mithridate.experiment.training_fields import ALLOWED_IN_TRAINING, NOT_IN_TRAINING
from mithridate.generation import BACKENDS, NEEDED
from mithridate.methods.index import facts
from mithridate.methods.registry import by_name
from mithridate.methods.types import descriptions, json_schema
from mithridate.protocols import PROTOCOLS

# Fields of SFTConfig and LoraConfig, by `python -m mithridate.experiment.schema --write`: no editor waits for torch.
TRAINING = Path(__file__).with_name("training_fields.json")
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_JSON = {str: "string", int: "integer", float: "number", dict: "object"}
_ANY = {"type": "object"}
_ONE_SOURCE = {"$ref": "#/$defs/Source"}
_SOURCE = {"anyOf": [_ONE_SOURCE, {"type": "array", "items": _ONE_SOURCE, "minItems": 1}]}

Schema = dict[str, Any]

_DESCRIBED: dict[str, type] = {
    "": Experiment,
    **{c.__name__: c for c in (Adapter, Align, Budget, Evaluate, Finetune, Source)},
}


def experiment_schema() -> Schema:
    """The schema, as JSON types. What another package adds is in it by name, with any fields: it is not imported."""
    schema = TypeAdapter(Experiment).json_schema()
    parts = schema["$defs"]
    for part in (schema, *parts.values()):
        part["additionalProperties"] = False
    for part in (schema, parts["Finetune"], parts["Adapter"]):
        del part["required"]  # what is missing may be swept, or has a default
    known = _known(parts)
    parts["Adapter"]["properties"] = known["adapter"]["properties"] | parts["Adapter"]["properties"]
    for name, allowed in ALLOWED_IN_ADAPTER.items():
        parts["Adapter"]["properties"][name]["enum"] = allowed
    roles = dict.fromkeys(ROLES, _SOURCE)
    schema["properties"]["data"] = {"type": "object", "properties": roles, "additionalProperties": False}
    for stage in ("Align", "Finetune"):
        schema["properties"][stage.lower()] = _one_of({"enum": ["none", None]}, {"$ref": f"#/$defs/{stage}"})
        parts[stage]["properties"]["defense"] = {"$ref": "#/$defs/defenses"}
        parts[stage]["properties"]["training"] = {"$ref": "#/$defs/training"}
    schema["properties"]["repair"] = {"$ref": "#/$defs/repairs"}
    schema["properties"]["budget"] = _one_of({"enum": ["none", None]}, {"$ref": "#/$defs/Budget"})
    several = _several([name for name in schema["properties"] if name not in ("sweep", "variants")])
    schema["properties"] |= several
    evaluate = parts["Evaluate"]["properties"]
    evaluate["protocol"]["enum"] = list(PROTOCOLS)
    evaluate["generator"] = {"$ref": "#/$defs/generators"}
    evaluate["judges"] = {"$ref": "#/$defs/judges"}
    tasks = dict.fromkeys(TASKS, _SOURCE)
    evaluate["tasks"] = {"type": "object", "properties": tasks, "additionalProperties": False}
    parts["training"] = _training(known["training"])
    for kind in ("defenses", "repairs"):
        parts[kind] = _methods({name: _indexed(kind, name, parts) for name in by_name(kind)})
    del parts["Attack"]
    parts["Finetune"]["properties"]["attack"] = {"$ref": "#/$defs/attacks"}
    parts["attacks"] = _attacks({name: _indexed("attacks", name, parts) for name in by_name("attacks")})
    parts["judges"] = _methods(_judges(parts))
    parts["generators"] = _methods(_generators(), needed=True)
    for name, cls in _DESCRIBED.items():
        properties = (parts[name] if name else schema)["properties"]
        for field, said in descriptions(cls).items():
            wanted = properties[field].get("description")  # of its type
            properties[field]["description"] = f"{said} Expected: {wanted}." if wanted and wanted != said else said
    for part in (schema, *parts.values()):
        if "description" in part:
            part["description"] = part["description"].partition("\n\nArgs:")[0].replace("\n", " ")
    return {"$schema": DIALECT, **schema, "title": "Mithridate experiment"}


def _several(fields: list[str]) -> dict[str, Schema]:
    """`variants`: values by dotted path, several times. `sweep`: lists of values by dotted path, where `variants` may
    stand in its old form."""
    path = rf"^({'|'.join(fields)})(\..+)?$"
    variant = _one_of(
        {"type": "object", "patternProperties": {path: {}}, "additionalProperties": False}, {"type": "null"}
    )
    variants = _one_of({"type": "array", "items": variant}, {"type": "object", "additionalProperties": variant})
    sweep = {
        "description": "Values that fields take, by dotted path; every combination is a cell.",
        "type": "object",
        "properties": {"variants": {**variants, "deprecated": True}},
        "patternProperties": {path: {"type": "array", "minItems": 1}},
        "additionalProperties": False,
    }
    said = "Each sets several fields at once, by dotted path; the sweep is run for each, but for what it sets itself."
    return {"variants": {"description": said, **variants}, "sweep": sweep}


def _one_of(*kinds: Schema) -> Schema:
    return {"anyOf": list(kinds)}


def _methods(fields: Mapping[str, Schema], needed: bool = False) -> Schema:
    """none | name | {name: {field: value}} | a list of these; without `none` where something is `needed`.

    Args:
        fields: of each method, the schema of its fields.
    """
    nothing: list[Schema] = [] if needed else [{"enum": ["none", None]}]
    # A name alone stands for a method whose fields all have defaults.
    alone = [name for name, schema in fields.items() if not schema.get("required")]
    values = {name: s if s.get("required") else _one_of(s, {"type": "null"}) for name, s in fields.items()}
    named: Schema = {"type": "object", "properties": values, "additionalProperties": False}
    one = [{"enum": alone}, named]
    return _one_of(*nothing, *one, {"type": "array", "items": _one_of(*one)})


def _attacks(fields: Mapping[str, Schema]) -> Schema:
    """One of the attacks, by its kind; the harmful one need not name it. What fields are missing may be swept."""
    kinds = []
    for name, schema in fields.items():
        kind = {"kind": {"const": name}}
        needed = [] if name == HARMFUL else ["kind"]
        kinds.append({**schema, "properties": kind | schema.get("properties", {}), "required": needed})
    return _one_of(*kinds)


def _fields(cls: type, parts: Schema, left_out: Iterable[str] = ()) -> Schema:
    """The fields that a file may set of a method: a dataclass's, without the data sets that it gets from roles."""
    left_out = {*left_out, *getattr(cls, "roles", {})}
    properties, required = {}, []
    for field in dataclasses.fields(cls):
        if not field.init or field.name in left_out:
            continue
        properties[field.name] = schema = json_schema(cls, field)
        parts.update(schema.pop("$defs", {}))
        if field.default is field.default_factory is dataclasses.MISSING:
            required.append(field.name)
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {})


def _indexed(kind: str, name: str, parts: Schema) -> Schema:
    """The fields of a method of this package, from the index."""
    if name not in by_name(kind).own:
        return _ANY
    found = copy.deepcopy(facts(kind, name))
    for schema in found["fields"].values():
        parts.update(schema.pop("$defs", {}))
    schema = {"type": "object", "properties": found["fields"], "additionalProperties": False}
    return schema | ({"required": found["required"]} if found["required"] else {})


def library_fields() -> dict[str, Schema]:
    """The schemas of SFTConfig's (`training`) and LoraConfig's fields (`adapter`), and the types with names of their
    own that they refer to (`parts`). Imports torch."""
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig

    parts: Schema = {}
    found = {
        "training": _fields(SFTConfig, parts, NOT_IN_TRAINING),
        "adapter": _fields(LoraConfig, parts, NOT_IN_ADAPTER),
    }
    return _in_order(found | {"parts": parts})


def _in_order(schema: Any) -> Any:
    """The schema with alternatives in one order: that of a `Union` depends on which was made first in a process."""
    if isinstance(schema, list):
        return [_in_order(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _in_order(one) for name, one in schema.items()}
    if isinstance(made.get("anyOf"), list):
        made["anyOf"] = sorted(made["anyOf"], key=json.dumps)
    return made


def _versions() -> dict[str, str | None]:
    return {name: version(name) for name in ("transformers", "trl", "peft")}


def _known(parts: Schema) -> dict[str, Schema]:
    """`library_fields`, from the index where it is of the installed versions; their parts go into `parts`."""
    known = json.loads(TRAINING.read_text(encoding="utf-8"))
    found = known["schema"] if known["versions"] == _versions() else library_fields()
    parts.update(found["parts"])
    return found


def _training(schema: Schema) -> Schema:
    for name, allowed in ALLOWED_IN_TRAINING.items():
        schema["properties"][name]["enum"] = allowed
    return {"description": "Fields of TRL's SFTConfig."} | schema


def _judges(parts: Schema) -> dict[str, Schema]:
    own = {name: _fields(judges.by_name(name), parts, ["generator"]) for name in judges.JUDGES}
    return dict.fromkeys(judges.names(), _ANY) | own


def _generators() -> dict[str, Schema]:
    found = {}
    for name, known in BACKENDS.items():
        properties = {field: {"type": [_JSON[kind] for kind in kinds]} for field, kinds in known.items()}
        found[name] = {"type": "object", "properties": properties, "additionalProperties": False}
        if name in NEEDED:
            found[name]["required"] = list(NEEDED[name])
    return found


def as_text() -> str:
    """The schema as JSON."""
    return json.dumps(experiment_schema(), indent=1)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        found = {"versions": _versions(), "schema": library_fields()}
        TRAINING.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    else:
        print(as_text())
