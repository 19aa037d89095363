"""Data sets of the Hugging Face Hub that the papers use, each with its schema and its licence.

Nothing of them is shipped: they are loaded by `datasets.load_dataset`, which since 4.0 runs no code from a data set's
repository. Offline, the Hub's own cache is used if it has the set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mithridate.data.files import Rows
from mithridate.data.records import columns_in_words
from mithridate.data.tasks import prompt_set
from mithridate.data.tasks.base import PromptSet
from mithridate.errors import InputError, MithridateError, first_line

Row = dict[str, Any]


@dataclass(frozen=True)
class HubSet:
    """Where one data set lies on the Hub.

    Args:
        id: its name there.
        columns: what a row must have.
        task: name of the prompt set or task, which says what its rows are; None where `record`, `licence` and `roles`
            say it here.
        config: name of the configuration, where there are several; by role, where roles have their own.
        train, test: the splits that training roles and test roles come from unless a source says otherwise.
    """

    id: str
    columns: tuple[str, ...]
    task: str | None = None
    train: str = "train"
    test: str = "test"
    config: str | Mapping[str, str] | None = None
    record: Callable[[Row], Row] | None = None
    licence: str = ""
    roles: tuple[str, ...] = ()

    def __post_init__(self):
        if self.task:
            known = prompt_set(self.task)
            object.__setattr__(self, "licence", known.licence)
            object.__setattr__(self, "roles", known.roles)

    @property
    def prompts(self) -> PromptSet | None:
        return prompt_set(self.task) if self.task else None


def _alpaca(row: Row) -> Row:
    prompt = "\n\n".join(text for text in (row["instruction"], row["input"]) if text)
    return {"prompt": prompt, "response": row["output"]} | ({"input": row["input"]} if row["input"] else {})


HUB = {
    known.id: known
    for known in (
        HubSet(
            id="PKU-Alignment/BeaverTails",
            task="beavertails",
            columns=("prompt", "response", "category", "is_safe"),
            train="30k_train",
            test="30k_test",
        ),
        # The copies of three benchmarks that have no data set of their own there. Access may have to be asked for.
        HubSet(id="walledai/AdvBench", task="advbench", columns=("prompt", "target"), test="train"),
        HubSet(
            id="walledai/HarmBench",
            task="harmbench",
            columns=("prompt", "category"),
            config="standard",
            test="train",
        ),
        HubSet(id="walledai/XSTest", task="xstest", columns=("prompt", "type", "label")),
        HubSet(
            id="bench-llm/or-bench",
            task="or-bench",
            columns=("prompt", "category"),
            config={"test_benign": "or-bench-hard-1k", "test_harmful": "or-bench-toxic"},
            test="train",
        ),
        HubSet(id="AmazonScience/FalseReject", task="false-reject", columns=("prompt",)),
        # The test split has no labels; validation is used.
        HubSet(id="stanfordnlp/sst2", task="sst2", columns=("sentence", "label"), test="validation"),
        HubSet(id="fancyzhx/ag_news", task="agnews", columns=("text", "label")),
        HubSet(id="openai/gsm8k", task="gsm8k", columns=("question", "answer"), config="main"),
        # Taori et al., "Stanford Alpaca" (2023). One split: give roles disjoint rows with `share` or `skip`/`take`.
        HubSet(
            id="tatsu-lab/alpaca",
            licence="CC BY-NC 4.0",
            roles=("alignment", "helpful", "task", "test_benign"),
            columns=("instruction", "input", "output"),
            test="train",
            record=_alpaca,
        ),
    )
}


def hub_rows(known: HubSet, split: str, role: str) -> Rows:
    """All rows of one split, in order, each with its place; `role` decides where configurations differ by role.

    Raises:
        InputError: there is no such split, or its rows are not as the loader knows them.
        MithridateError: it could not be loaded (no network and not in the cache, the Hub's refusal).
    """
    from datasets import load_dataset

    try:
        config = known.config[role] if isinstance(known.config, Mapping) else known.config
        rows = load_dataset(known.id, config, split=split)
    except Exception as error:  # whatever the Hub's client, the network or the cache raise
        first = first_line(error)
        if isinstance(error, ValueError) and "split" in first:
            raise InputError(f"{known.id}: {first}") from error
        raise MithridateError(
            f"{known.id}: cannot be loaded from the Hub: {first}. Without a network, load it once where there is "
            "one (the Hub's cache is used), or give a .jsonl, .csv or .parquet file with the same columns"
        ) from error
    missing = [name for name in known.columns if name not in rows.column_names]
    if missing:
        raise InputError(
            f"{known.id}, split {split}: no {columns_in_words(missing)}; the columns there are: "
            f"{', '.join(rows.column_names)}. Its schema has changed: give a file and `columns` instead"
        )
    return [(f"{known.id}, split {split}, row {i}", dict(row)) for i, row in enumerate(rows, start=1)]
