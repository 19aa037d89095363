"""Answers of a model to prompts: one protocol (`base.Generator`), a file for each backend.

Experiment files name the backends: `transformers`, `vllm`, `openai`. Naming and checking them needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What an experiment file may set of each backend, with the types that it takes; the rest is the pipeline's business.
BACKENDS: dict[str, dict[str, tuple[type, ...]]] = {
    "transformers": {"batch_size": (int,)},
    "vllm": {"options": (dict,)},
    "openai": {
        "base_url": (str,),
        "model": (str,),
        "revision": (str,),
        "api_key_env": (str,),
        "concurrency": (int,),
        "timeout": (int, float),
        "retries": (int,),
    },
}
NEEDED = {"openai": ("base_url", "model", "revision")}


def problems(spec: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with {backend: {field: value}}, in words; empty where nothing is."""
    from mithridate.problems import kind, nearest

    if len(spec) != 1:
        return [f"expected one backend, got {', '.join(spec) or 'none'}"]
    [(name, fields)] = spec.items()
    if name not in BACKENDS:
        return [f"no such backend `{name}`{nearest(name, BACKENDS)}"]
    known, found = BACKENDS[name], []
    for field, value in fields.items():
        if field not in known:
            found.append(f"{name}.{field}: no such field{nearest(field, known)}")
        elif not isinstance(value, known[field]) or isinstance(value, bool):
            found.append(
                f"{name}.{field}: expected {' or '.join(t.__name__ for t in known[field])}, got {kind(value)}"
            )
    found += [f"{name}.{field}: missing" for field in NEEDED.get(name, ()) if field not in fields]
    if name == "openai" and "revision" not in fields:
        found[-1] += (
            "; state what the server runs (a commit, a date: any text that changes when the weights do), for kept "
            "answers are known by it"
        )
    return found
