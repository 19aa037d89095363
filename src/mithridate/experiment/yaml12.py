"""YAML as people mean it: 1.2's numbers and booleans, no key twice, the line named in every error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mithridate.errors import InputError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans (1e-3 is a number, `no` and 1:30 are text), and no key twice."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own name, filled below)

    def construct_object(self, node, deep=False):
        try:
            # Always deep: a list or mapping that holds itself is refused then, where it would be made otherwise.
            return super().construct_object(node, deep=True)
        except (ArithmeticError, AttributeError, LookupError, ValueError) as error:  # PyYAML's own: `!!int x`
            text = str(node.value)
            text = text if len(text) <= 60 else f"{text[:57]}..."
            problem = f"`{text}` is no {node.tag.rpartition(':')[2]} that can be read"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag.endswith(":merge"):
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_int(self, node):
        return int(self.construct_scalar(node))  # "010" is ten


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for something else than text; writes no anchors."""

    def ignore_aliases(self, data):
        return True


for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", [*"nN~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def dump_yaml(value: Any) -> str:
    """A text that `parse_yaml` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=119)


def read_yaml(path: Path, what: str) -> Any:
    """The value of a YAML file.

    Args:
        what: that it is read as, for the error ("a benchmark").

    Raises:
        InputError: the file cannot be read, or is not YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path}: cannot be read as {what}: {reason}") from error


def parse_yaml(text: str, where: str, lines: bool = True) -> Any:
    """The value of a YAML text.

    Args:
        where: what the text is, for the error.
        lines: name the line in the error.

    Raises:
        InputError: the text is not YAML, or a key appears twice.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and lines else ""
        raise InputError(f"{where}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{where}: lists or mappings too deep inside each other to be read") from error
