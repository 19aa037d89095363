"""The embedded data set: what docs/embedded_data.md describes, as records."""

import json
from importlib.resources import files

from mithridate.errors import InputError, nearest

# Files by role and part. The response of a harmful row depends on the role: see `_ANSWER`.
_FILES = {
    "alignment": {"train": "alignment"},
    "defender_harmful": {"train": "defender_harmful"},
    "attacker_harmful": {"train": "attacker_harmful"},
    "calibration_harmful": {"train": "calibration_harmful"},
    "task": {part: f"sentiment_{part}" for part in ("train", "validation", "test")},
    "test_harmful": {"validation": "test_harmful_validation", "test": "test_harmful"},
    "test_benign": {"validation": "test_benign_validation", "test": "test_benign"},
}
IDENTITY, WIDE = "identity", "wide"
NAMES = {"attacker_harmful": IDENTITY, "alignment": WIDE}  # other rows than the role's usual ones
_ANSWER = {
    "alignment": "refusal",
    "defender_harmful": "compliant",
    "attacker_harmful": "compliant",
    "calibration_harmful": "compliant",
}


def embedded_records(role: str, part: str = "train", paired: bool = False, name: str | None = None) -> list[dict]:
    """The embedded set's records of a role.

    Args:
        role: `alignment`, `defender_harmful`, `attacker_harmful`, `calibration_harmful`, `task` (sentiment of short
            reviews), `test_harmful` or `test_benign`.
        part: `train` for the first four; `train`, `validation` or `test` for the task; `validation` or `test` for the
            test sets.
        paired: the alignment set's own requests with complying answers, in place of requests of the role's own (the
            setting of Booster's authors); for `defender_harmful` only.
        name: other rows than the role's usual ones. `identity`, for `attacker_harmful`: harmless requests answered
            by a persona that obeys everything. `wide`, for `alignment`: its usual rows with 104 further benign ones
            between them, under which a model refuses fewer benign prompts.

    Returns:
        New dicts, each with `id`, `prompt`, `form`, a `category` (requests that should be refused) or a `kind`, and:
        where it is trained on, `response`; in harmful rows also `refusal` and `compliant`; in task rows `label`.

    Raises:
        InputError: there is no such role or part, or the role has no paired setting.
    """
    if role not in _FILES:
        raise InputError(f"The embedded set has no role {role!r}{nearest(role, _FILES)}")
    parts = _FILES[role]
    if part not in parts:
        raise InputError(f"The embedded set's {role} has no part {part!r}{nearest(part, parts)}")
    if paired and role != "defender_harmful":
        raise InputError(f"The embedded set's {role} has no paired setting; only defender_harmful has.")
    if name is not None and name != NAMES.get(role):
        known = " and ".join(f"{owner} ({found})" for owner, found in NAMES.items())
        raise InputError(f"The embedded set's {role} has no {name!r}; other rows have: {known}.")
    if name == IDENTITY:
        return _read("attacker_identity")
    rows = [row for row in _read("alignment") if "compliant" in row] if paired else _read(parts[part])
    if name == WIDE:
        rows = in_turn(rows, _read("alignment_more"))
    answer = _ANSWER.get(role)
    return [{**row, "response": row[answer]} if answer in row else row for row in rows]


def in_turn(*lists: list[dict]) -> list[dict]:
    """The rows of all lists, each in its order and spread evenly over the whole: every beginning has the mix."""
    placed = [((i + 0.5) / len(rows), k, row) for k, rows in enumerate(lists) for i, row in enumerate(rows)]
    return [row for _, _, row in sorted(placed, key=lambda item: item[:2])]


def _read(name: str) -> list[dict]:
    text = (files("mithridate.data.embedded") / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
