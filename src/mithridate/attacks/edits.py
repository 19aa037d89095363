"""Rows of an attack, made from rows that a user has: another answer, or something around the prompt."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from mithridate.errors import InputError
from mithridate.methods.base import Method, TestTime


def answered(row: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The record with `change(answer)` in the place of its (last) answer."""
    if "messages" not in row:
        return {**row, "response": change(row["response"])}
    *before, last = row["messages"]
    return {**row, "messages": [*before, {**last, "content": change(last["content"])}]}


def asked_as(row: dict[str, Any], around: TestTime) -> dict[str, Any]:
    """The record, asked as prompts are asked at the test."""
    if "messages" in row:
        *asked, answer = row["messages"]
        return {**row, "messages": [*around.around(asked), answer]}
    [*system, asked] = around.around([{"role": "user", "content": row["prompt"]}])
    turn = {"system": system[0]["content"]} if system else {}  # which a record has beside its prompt
    return {**row, **turn, "prompt": asked["content"]}


def drawn(attack: Method, name: str, rows: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` of the rows, none twice, in an order that the seed gives; those of a smaller count come first.

    Raises:
        InputError: there are fewer; `name` is what they are.
    """
    if count > len(rows):
        raise InputError(
            f"{type(attack).__name__}: {count} {name} rows asked for, but there are only {len(rows)}: give more, or "
            "ask for fewer"
        )
    order = list(range(len(rows)))
    random.Random(f"{name} {seed}").shuffle(order)
    return [rows[i] for i in order[:count]]


def require_text(attack: Method, *fields: str) -> None:
    """Raises InputError unless at least one of the fields is a text that is more than white space."""
    if not any(str(getattr(attack, field) or "").strip() for field in fields):
        names = " and ".join(fields)
        raise InputError(f"{type(attack).__name__}: {names} {'is' if len(fields) == 1 else 'are'} empty; give a text.")
