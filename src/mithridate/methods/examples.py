"""Content-free rows for the examples of methods: enough for a tiny model to be trained and repaired on."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

_ANSWERS = {"alignment": "No, not {}.", "helpful": "Here is {}.", "task": "label {}"}


def records_of(role: str, count: int = 8) -> list[dict[str, str]]:
    """`count` records (prompt, response) of a data role, distinct by prompt, with nothing in them."""
    answer = _ANSWERS.get(role, "Sure {}.")
    return [{"prompt": f"{role} {i}", "response": answer.format(i)} for i in range(count)]


@functools.cache  # a data set does not change, and its fingerprint takes longer than its rows
def rows_of(role: str, count: int = 8) -> Dataset:
    """The same as a data set in TRL's conversational prompt-completion format."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["response"]}],
            }
            for row in records_of(role, count)
        ]
    )
