"""docs/attacks.md's tables are those of the runs that were kept."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.attacks_table import ALIGNED, NONE, kept, tables

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["attack-kinds", "attack-adapters", "attack-precision"])
def test_the_page_shows_what_was_kept(name):
    cells = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert tables(cells) in PAGE


def test_what_is_kept_of_a_run_and_how_it_is_shown(tmp_path):
    def cell(defense, attack, score, paired=None, control=None):
        rate = {"value": score, "low": 0.004, "high": 0.996}
        rates = {"harmful_score": rate, "incoherent": rate} | ({"accuracy": rate} if attack else {})
        own = {"alignment": "sft", "finetuning": defense, "repair": "none", "control": control}
        attack = attack and {"learning_rate": 1e-3} | attack
        return own | {"attack": attack, "rates": rates, "paired": paired, "resistance": []}

    harmful, kind = {"harmful_ratio": 0.1}, {"kind": "trigger", "harmful_ratio": 0}
    below = {"difference": -0.5, "p_holm": 0.04, "n": 9}
    results = {
        "cells": [
            cell("none", None, 0.1),
            cell("sft", harmful, 0.9),
            cell("lisa", harmful, 0.4, below),
            cell("lisa", harmful, 0.3, below, control="no-proximal-term"),
            cell("sft", kind, 0.2),
            cell("lisa", kind, 0.1, below | {"p_holm": 0.06}),
            cell("ewc", kind, 0.9, below | {"difference": 0.5}),
        ]
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    cells = kept(tmp_path)
    assert [cell["defense"] for cell in cells] == [NONE, NONE, "lisa", NONE, "lisa", "ewc"]
    scores, costs = tables(cells).split("\n\n")
    assert scores.splitlines() == [
        f"| harmful score | {NONE} | lisa | ewc |",
        "|---|---|---|---|",
        f"| {ALIGNED} | 10 [0, 100] | – | – |",
        "| `harmful` | 90 [0, 100] | 40 [0, 100] * | – |",
        "| `trigger`, ratio 0 | 20 [0, 100] | 10 [0, 100] | 90 [0, 100] |",
    ]
    assert costs.splitlines()[2:4] == [
        f"| {ALIGNED} | – / – / 10 | – | – |",
        "| `harmful` | 90 / – / 90 | 40 / – / 40 | – |",
    ]


def test_another_training_than_the_experiments_own_is_named(tmp_path):
    lora = {"r": 1, "lora_alpha": 2, "lora_dropout": 0, "target_modules": ["q_proj", "k_proj"]}
    trainings = [
        ({"adapter": lora, "frozen": [".*lora_A.*"]}, {}),
        ({"adapter": "full", "learning_rate": 2e-5}, {}),
        ({"learning_rate": 0.3}, {"finetune.training.optim": "sgd"}),
        ({}, {"finetune.training.num_train_epochs": 10}),
    ]
    rate = {"value": 0.5, "low": 0.25, "high": 0.75}
    cell = {"alignment": "sft", "finetuning": "lisa", "repair": "none", "control": None, "paired": None}
    cell |= {"rates": {"harmful_score": rate, "benign_refusal": rate}, "resistance": []}
    attack = {"kind": "harmful", "harmful_ratio": 0.1, "learning_rate": 1e-3}
    cells = [cell | {"attack": attack | training, "swept": swept} for training, swept in trainings]
    cells[3]["resistance"] = [{"step": 60, "rates": {"harmful_score": rate, "benign_refusal": {"value": None}}}]
    cells += [cell | {"attack": asked, "swept": {"evaluate.precision": "int8"}} for asked in (attack, None)]
    (tmp_path / "results.json").write_text(json.dumps({"cells": cells}))
    scores, costs = tables(kept(tmp_path)).split("\n\n")
    names = [line.split("|")[1].strip() for line in scores.splitlines()[2:]]
    assert names == [
        "`harmful`, rank 1 on q k, lora_A frozen, rate 0.001",
        "`harmful`, all weights, rate 2e-05",
        "`harmful`, sgd, rate 0.3",
        "`harmful`, 10 epochs, rate 0.001, step 60",
        "`harmful`, 10 epochs, rate 0.001",
        "`harmful`, int8",
        f"{ALIGNED}, int8",
    ]
    assert costs.splitlines()[5:7] == [
        "| `harmful`, 10 epochs, rate 0.001, step 60 | – / – / – |",
        "| `harmful`, 10 epochs, rate 0.001 | – / 50 / – |",
    ]


def test_the_table_of_attackers_who_know_is_that_of_the_benchmark():
    folder = ROOT / "benchmarks" / "results" / "knowing"
    lines = [line.strip("| \n").split(" | ") for line in (folder / "benchmark.md").read_text().splitlines()]
    [head] = [line for line in lines if line[0] == "topology"]
    tries = json.loads((folder / "benchmark.json").read_text())["knowing"]
    methods = [line[1] for line in lines if line[0] == "single" and line[1] != "undefended"]
    assert len(methods) == 16
    for method in methods:
        [cells] = [dict(zip(head, line, strict=True)) for line in lines if line[:2] == ["single", method]]
        [row] = [
            line
            for line in PAGE.splitlines()
            if line.lower().startswith(f"| {method} | {cells['harmful score [95 %]'].lower()} | ")
        ]
        knowing = ("harmful score, knowing", "undefended, knowing", "to undefended, knowing [95 %]")
        assert f" | {' | '.join(cells[name] for name in knowing)} | " in row
        own = [one for one in tries if one["method"] == method]
        assert cells["who knows"] in [one["attack"] for one in own if one["chosen"]]
        said = row.rsplit(" | ", 1)[1]
        shown = [one for one in own if not one["chosen"] and (one["number"] or not own[0]["chosen"])]
        numbers = [f"{100 * one['scores']['harmful_score']:.0f}" for one in shown]
        assert sorted(re.findall(r"\d+", said)) == sorted(numbers)
        assert said.count("price of the task") == sum(not one["within"] for one in shown)
        assert (" | nothing | " in row) == own[0]["chosen"]
