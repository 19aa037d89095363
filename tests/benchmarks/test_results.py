"""docs/results.md: its sentences are those of the tests, and the page is what the kept runs give."""

import json
import re
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import results
from benchmarks.results_page import findings, papers
from benchmarks.results_page.evidence import Evidence, by_name_alone, keep, made_with, read
from benchmarks.results_page.page import page, what_was_run
from mithridate.errors import InputError
from mithridate.experiment.config import load_experiment
from mithridate.methods.registry import by_name
from mithridate.results.outcomes import Outcomes
from mithridate.store import Store
from mithridate.studies.benchmarks.settings import load_benchmark
from mithridate.studies.benchmarks.standings import Entrant, standings
from mithridate.studies.presets.book import MARKS

ROOT = Path(__file__).parents[2]
KEPT = sorted(path.parent for path in (ROOT / "benchmarks" / "results").glob("*/benchmark.json"))
PROMPTS = 40
SHARES = {
    "undefended": (0.9, 0.95, 0.9),
    "booster": (0.2, 0.225, 0.2),
    "vaccine": (0.9, 0.95, 0.925),
    "antidote": (0.45, 0.5, 0.5),
    "antidote, random-mask": (0.85, 0.9, 0.95),
    "wiseft": (0.475, 0.525, 0.45),
    "kl": (0.9, 0.975, 0.925),
}
SETTINGS = {"booster": {"lam": 20.0, "alpha": 0.1}, "antidote": {"ratio": 0.05}, "vaccine": {"rho": 1.0}}


@cache
def scored(shares):
    """Outcomes of these shares of the harmful prompts, by method and seed, and the standings that they give."""
    outcomes, entrants = Outcomes(), []
    for name, by_seed in shares:
        for seed, share in enumerate(by_seed):
            hit = {f"p{i}": (i < share * PROMPTS,) for i in range(PROMPTS)}
            right = {f"t{i}": (i < (30 + seed % 2 if name == "antidote" else 38),) for i in range(PROMPTS)}
            outcomes.put(f"{name}-{seed}", {"harmful_score": hit, "accuracy": right, "benign_refusal": right})
        of = name.partition(", ")[0] if ", " in name else None
        cells = [[f"{name}-{seed}"] for seed in range(len(by_seed))]
        entrants.append(Entrant(name, "single", SETTINGS.get(name, {}), cells, of))
    return outcomes, json.dumps([asdict(one) for one in standings(entrants, outcomes)])


def evidence(shares=SHARES, **made) -> Evidence:
    """A benchmark of one topology and three seeds."""
    file, experiment, _ = load_benchmark(ROOT / "examples/benchmarks/embedded.yaml")
    outcomes, rows = scored(tuple(shares.items()))
    scores = {"harmful_score": 0.2, "accuracy": 0.9, "benign_refusal": 0.1, "incoherent": None}
    tries = [
        {"method": "booster", "topology": "single", "number": i, "settings": {"lam": lam, "alpha": 0.1}}
        | {"scores": scores, "excess": 0.0, "within": True, "chosen": lam == 20.0}
        for i, lam in enumerate((2.0, 6.3, 20.0), 1)
    ]
    file = asdict(file) | {"as_given": {"ptst": {}}}
    found = {"file": file, "points": [{}], "tries": tries, "standings": json.loads(rows)}
    made = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T02:00:00+00:00", "note": "a note"} | made
    made = {"computers": [], "alike": {"groups": 0, "median": None, "most": None}} | made
    run = {"model_digest": "0123456789abcdef", "deviations": [], "notes": []}
    return Evidence("embedded", found, "| the table |", run, outcomes, experiment, made)


def line(lines, name):
    [found] = [one for one in lines if one.startswith(f"- **{name}**")]
    return found


# -- sentences --------------------------------------------------------------------------------------------------------


def test_each_method_is_told_against_the_undefended_run_and_its_control():
    lines = list(findings.of_each(evidence(), "single"))
    assert "(lam 20.0, alpha 0.1): harmful score 21 % [" in line(lines, "booster")
    assert "; lower than the undefended run: −71 points [" in line(lines, "booster")
    assert "no control of its own was run; costs: accuracy 0 points [0, 0], p = 1, " in line(lines, "booster")
    assert ", broken answers not measured; shown to be worse: none." in line(lines, "booster")
    assert "not shown to differ from the undefended run: +1 point [" in line(lines, "vaccine")
    assert "; lower than its control random-mask: " in line(lines, "antidote")
    assert "costs: accuracy −19 points [" in line(lines, "antidote")
    assert "shown to be worse: accuracy." in line(lines, "antidote")
    assert not any(one.startswith("- **antidote, random-mask") for one in lines)


def test_a_planted_change_turns_the_sentence():
    lines = list(
        findings.of_each(evidence(SHARES | {"booster": (1.0, 1.0, 1.0), "undefended": (0.2, 0.25, 0.2)}), "single")
    )
    assert "; higher than the undefended run: +78 points [" in line(lines, "booster")


def test_methods_are_told_apart_from_baselines_or_not():
    lines = list(findings.against_baselines(evidence(), "single"))
    for kind in ("for other seeds", "of the models at hand"):
        assert f"{kind}, lower than wiseft, kl; higher than none; not told apart from none" in line(lines, "booster")
        assert f"{kind}, lower than kl; higher than none; not told apart from wiseft" in line(lines, "antidote")
        assert f"{kind}, lower than none; higher than wiseft; not told apart from kl" in line(lines, "vaccine")
    assert sum(re.match(r"\| (booster|antidote|vaccine) \| (wiseft|kl) \|", one) is not None for one in lines) == 6
    few = evidence({name: by_seed[:2] for name, by_seed in SHARES.items()})
    assert "for other seeds" not in "\n".join(findings.against_baselines(few, "single"))
    alone = evidence({name: SHARES[name] for name in ("undefended", "booster")})
    assert "no baseline beside the methods" in "\n".join(findings.against_baselines(alone, "single"))


def test_every_baseline_is_a_method():
    assert set(findings.BASELINES) <= {*by_name("defenses"), *by_name("repairs")}


@pytest.mark.parametrize(
    ("values", "chosen", "said"),
    [
        ([1.0, 2.0, 3.0], 3.0, "lam: the highest of 1 to 3"),
        ([3.0, 1.0, 2.0], 1.0, "lam: the lowest of 1 to 3"),
        ([1.0, 2.0, 3.0], 2.0, "lam: inside of 1 to 3"),
        ([[1.0], [2.0]], [1.0], ""),
        ([1.0, 1.0], 1.0, ""),
    ],
)
def test_the_place_of_a_choice_in_its_range(values, chosen, said):
    assert findings.place([{"settings": {"lam": value}} for value in values], {"lam": chosen}) == said


def test_choices_and_every_try_are_on_the_page():
    made = evidence()
    text = "\n".join(findings.choices(made))
    assert "beyond which a better one may lie: booster (single; lam: the highest of 2 to 20)" in text
    assert "at the settings that the file gives: ptst" in text and "No try is within" not in text
    made.found["tries"][2] |= {"within": False, "excess": 0.03}
    assert "No try is within the bounds" in (text := "\n".join(findings.choices(made)))
    assert "beyond by 3.0 points" in text
    assert sum(one.startswith("| single | booster |") for one in findings.all_tries(made)) == 3


# -- the papers -------------------------------------------------------------------------------------------------------


def test_the_papers_cells_give_the_means_that_they_print():
    """A second place for every number that has one: a mistyped cell moves the mean by more than rounding does."""
    tables, _ = papers.book()
    checked = 0
    for one in tables:
        assert one.mark in MARKS and len(one.source) > 7, one.name
        for name, row in one.rows.items():
            assert name in {"sft", "bso", *by_name("defenses"), *by_name("repairs")}
            for measure in papers.MEASURES:
                cells = getattr(row, measure)
                if cells and measure in row.means:
                    assert sum(cells) / len(cells) == pytest.approx(row.means[measure], abs=6e-5), (one.name, name)
                    checked += 1
    assert checked > 40


def test_a_table_with_a_missing_cell_is_refused(tmp_path, monkeypatch):
    (tmp_path / "papers.yaml").write_text(papers.FILE.read_text().replace("[0.012, 0.207, 0.321,", "[0.012, 0.321,"))
    monkeypatch.setattr(papers, "FILE", tmp_path / "papers.yaml")
    with pytest.raises(InputError, match=r"Booster, Table 1.*repnoise\.harmful_score: 4 numbers in 5 columns"):
        papers.book.__wrapped__()


def table(**rows):
    made = {name: papers.PaperRow(means={"harmful_score": mean}) for name, mean in rows.items()}
    setup = {"model": "meta-llama/Llama-2-7b-hf", "topology": "double", "judge": "beaver-dam-7b", "seeds": "3"}
    return papers.PaperTable("a table", "a paper", "its page", "P", [], made, setup)


def test_where_the_order_is_another_it_is_said_with_what_differs():
    parameters = papers.book()[1]
    theirs = table(sft=0.5, booster=0.4, antidote=0.2, safelora=0.1)
    text = "\n".join(papers.compared(evidence(), "single", theirs, parameters))
    assert "there: antidote < booster < undefended; in `embedded` (single): booster < antidote < undefended." in text
    swap = r"- \*antidote\* is below \*booster\* there; here it is above: \+2[78] points \[.*is shown by our test"
    assert re.search(swap, text)
    assert "| parameters, millions | 6738 | 135 |" in text and "| topology | double | single |" in text
    assert "| judge | beaver-dam-7b | rules-v3 |" in text and "| seeds |" not in text
    text = "\n".join(papers.compared(evidence(), "single", table(sft=0.5, booster=0.2, antidote=0.4), parameters))
    assert text.startswith("No two change places") and "set-ups" not in text


def test_what_ties_here_is_no_other_order():
    same = evidence(SHARES | {"booster": SHARES["antidote"]})
    text = "\n".join(papers.compared(same, "single", table(booster=0.4, antidote=0.2), {}))
    assert text.startswith("No two change places")
    assert "no two of its methods" in "\n".join(papers.compared(same, "single", table(sft=0.4), {}))


def test_a_row_of_another_rule_is_shown_and_not_compared():
    theirs = table(sft=0.5, kl=0.1)
    theirs.rows["kl"] = replace(theirs.rows["kl"], other_rule="not this one")
    assert papers.orders(evidence(), "single", theirs) == (
        {"undefended": 0.5},
        pytest.approx({"undefended": 0.917}, abs=1e-3),
    )
    assert "another rule than the one here: not this one" in "\n".join(papers.numbers(theirs))


def test_a_presets_set_up_is_that_of_its_scripts():
    [booster] = [one for one in papers.book()[0] if one.name.startswith("Booster, Table 1")]
    told = {name: booster.setup[name] for name in ("topology", "user's steps", "alignment steps", "harmful prompts")}
    assert told == {
        "topology": "double (booster: single)",
        "user's steps": "2000",
        "alignment steps": "10000",
        "harmful prompts": "1000",
    }
    ours = papers.setup_here(evidence(), "single")
    assert (ours["user's rows"], ours["user's steps"], ours["harmful prompts"]) == ("120", "30", str(PROMPTS))


# -- what it was computed with ----------------------------------------------------------------------------------------


def artefact(stage, seconds, seed, commit="abc", **config):
    hardware = {"cpu": "a CPU", "cores": 2, "memory_bytes": 2e10, "gpus": []}
    times = {"started": f"2026-01-01T0{seed}:00:00+00:00", "finished": f"2026-01-01T0{seed}:30:00+00:00"}
    versions = {"torch": "2.13", "commit": commit}
    made = {"stage": stage, "seconds": seconds, "config": {"seed": seed, **config}, "hardware": hardware}
    return SimpleNamespace(manifest=made | {"versions": versions} | times)


def test_machine_versions_times_and_how_busy_it_was():
    made = made_with(
        [
            artefact("align", 100.0, 0),
            artefact("align", 150.0, 1),
            artefact("finetune", 60.0, 1, defense={"lisa": {}}),
            artefact("evaluate", 10.0, 2, commit=None),
        ]
    )
    assert made["alike"] == {"groups": 1, "median": 1.5, "most": 1.5}
    assert [(one["stages"], one["seconds"]) for one in made["computers"]] == [(3, 310.0), (1, 10.0)]
    text = "\n".join(what_was_run(evidence(**made)))
    assert "3 stages (0.09 h) on 2 cores of a CPU, 20 GB; torch 2.13; commit `abc`." in text
    assert (
        "an installed package, of no known commit." in text and "Wall time: 2.50 h, from 2026-01-01 00:00 UTC" in text
    )
    assert "the longest took 1.5 times the shortest's time (median of 1 groups; at most 1.5 times)" in text
    assert "- Model: smollm2-135m, 135 million parameters, digest `0123456789ab`." in text and "- a note." in text


def test_what_cannot_be_kept_is_refused(tmp_path, capsys):
    with pytest.raises(InputError, match=r"no benchmark\.json; give the folder of a benchmark that has finished"):
        keep(tmp_path, tmp_path / "kept", Store(tmp_path / "store"))
    (run := tmp_path / "run").mkdir()
    (run / "benchmark.json").write_text("{}")
    with pytest.raises(InputError, match=r"the store .* has nothing of .*run; set MITHRIDATE_STORE"):
        keep(run, tmp_path / "kept", Store(tmp_path / "store"))
    (other := tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="other: holds something else"):
        keep(run, other, Store(tmp_path / "store"))
    with (run / "results.json").open("wb") as file:
        file.truncate(9_000_000)
    with pytest.raises(InputError, match=r"9\.0 MB, and at most 8 MB are committed"):
        keep(run, tmp_path / "kept", Store(tmp_path / "store"))
    assert results.main([str(tmp_path), "--out", str(tmp_path / "page.md")]) == 3
    assert "not a run folder" in capsys.readouterr().err and not (tmp_path / "page.md").exists()


def test_what_is_kept_names_no_folder_of_the_machine(tmp_path):
    kept = (ROOT / "benchmarks" / "results" / "hardening" / "experiment.yaml").read_text(encoding="utf-8")
    assert not re.search(r"source: ['\"]?/", kept)
    (file := tmp_path / "experiment.yaml").write_text(kept.replace("helpful.jsonl", f"{tmp_path}/helpful.jsonl"))
    by_name_alone(file)
    assert file.read_text(encoding="utf-8") == kept


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_all_of_it():
    text = page([evidence()])
    for words in ("| the table |", "- **booster**", "All 3 tries", "Booster, Table 1", "benchmarks/results/embedded"):
        assert words in text
    assert text.count("<details") == text.count("</details>") and "None" not in text


def test_the_page_is_what_the_kept_runs_give():
    """Of docs/results.md, where runs are kept; which it names, and no other."""
    assert results.PAGE.exists() == bool(KEPT), "a page without its runs, or runs without their page"
    if KEPT:
        text = results.PAGE.read_text(encoding="utf-8")
        [named] = re.findall(r"python -m benchmarks\.results (.*)`", text)
        folders = [ROOT / one for one in named.split()]
        assert sorted(folders) == KEPT
        assert page([read(folder) for folder in folders]) == text, f"run `python -m benchmarks.results {named}`"


def leaves(found, path=()):
    """What a nest of dicts and lists holds, by where it is."""
    if isinstance(found, dict | list):
        for key, value in found.items() if isinstance(found, dict) else enumerate(found):
            yield from leaves(value, (*path, key))
        return
    yield path, found


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_the_standings_are_those_of_the_kept_records(folder):
    """To the last digits of a float, in which processors differ."""
    kept = read(folder)
    for topology in kept.topologies:
        entrants = sorted(kept.entrants(topology).values(), key=lambda one: one.name != "undefended")
        again = {one.entrant.name: json.loads(json.dumps(asdict(one))) for one in standings(entrants, kept.outcomes)}
        for name, row in kept.standings(topology).items():
            for field in ("rates", "against", "control", "rank", "rank_here", "breaks_at"):
                was, found = dict(leaves(row[field])), dict(leaves(again[name][field]))
                numbers = {path for path, value in was.items() if isinstance(value, float)}
                assert found.keys() == was.keys(), (name, field)
                assert all(found[path] == was[path] for path in found.keys() - numbers), (name, field)
                for path in numbers:
                    assert found[path] == pytest.approx(was[path], rel=1e-9), (name, field, path)


def test_an_experiment_without_a_task_or_a_number_of_steps_has_a_set_up():
    raw = {"model": "m", "data": {role: {"source": "embedded"} for role in ("alignment", "attacker_harmful")}}
    raw["finetune"] = {"attack": {"harmful_ratio": 1.0, "size": 16}, "training": {"num_train_epochs": 2}}
    made = papers.setup_of(load_experiment(raw), {})
    assert made["harmful ratio"] == "1" and made["user's steps"] == "4" and "task" not in made


def test_the_table_of_the_budget_is_that_of_its_run():
    run = json.loads((ROOT / "benchmarks" / "results" / "budget.json").read_text())
    names = {"none": "unrepaired", "antidote": "Antidote", "randommask": "RandomMask"}
    rows = []
    for cell in run["cells"]:
        if cell["id"].startswith("sft-none"):
            continue
        rates = [cell["rates"][name]["value"] for name in ("harmful_score", "accuracy", "benign_refusal")]
        taken = (cell.get("budget") or {}).get("taken") or "–"
        parts = [cell["seed"], names[cell["repair"]], taken, *(f"{100 * rate:.0f}" for rate in rates)]
        rows.append("| " + " | ".join(map(str, parts)) + " |")
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert len(rows) == 9 and "\n".join(rows) in page
