"""`mithridate benchmark` on a tiny model: equal tries on validation parts, the chosen ones once on the test."""

import csv
import json
import shutil
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

from benchmarks import results
from mithridate.cli import main
from mithridate.errors import InputError
from mithridate.experiment.config import canonical, load_experiment
from mithridate.experiment.yaml12 import parse_yaml
from mithridate.studies.benchmarks.experiments import attacked_runs, settings_of
from mithridate.studies.benchmarks.knowing import choose_attack
from mithridate.studies.benchmarks.outcome import KNOWING_TITLES, TITLES, Benchmark, table_of
from mithridate.studies.benchmarks.run import benchmark, planned
from mithridate.studies.benchmarks.settings import Bounds, arms_of, load_benchmark
from mithridate.studies.benchmarks.standings import RATES, Entrant, Standing, UnderKnowing
from mithridate.studies.benchmarks.tries import MeanScores, choose, excess
from mithridate.studies.demo import demo_experiments, recipe
from tests.pipeline.small import experiment, stages, write_inputs, write_rows


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    for name in ("test_harmful", "task_test", "test_benign"):
        write_rows(folder, name, 24)
    return folder


FILE = {
    "experiment": {
        "model": "m",
        "data": {role: {"source": role} for role in ("alignment", "attacker_harmful", "task", "test_harmful")},
        "align": {},
        "finetune": {"attack": {"harmful_ratio": 0.2, "size": 50}},
        "evaluate": {"protocol": "hs/embedded-v1"},
    }
}


def plain(inputs, **changes):
    made = experiment(inputs, **changes)
    for role in ("test_harmful", "task", "test_benign"):
        made["data"][role]["validation_share"] = 0.5
    return made


def file(inputs, **changes):
    return {
        "experiment": plain(inputs),
        "methods": {"vaccine": {"rho": [0.05, 0.1]}, "antidote": {"ratio": {"low": 0.1, "high": 0.4}}},
        "as_given": {"lisa": {"align_steps": 1, "finetune_steps": 2}},
        "attack": {"finetune.training.max_steps": [3, 4]},
        "tries": 2,
        "bounds": {"accuracy": 1.0, "benign_refusal": 1.0, "incoherent": 1.0},
        "seeds": [0, 1],
    } | changes


def by_method(some):
    return {method: [one for one in some if one.method == method] for method in dict.fromkeys(o.method for o in some)}


@pytest.fixture(scope="module")
def study(inputs, tmp_path_factory):
    """One benchmark, and the folder and store that it leaves."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MITHRIDATE_STORE", str(folder / "store"))
        yield benchmark(file(inputs, knowing=True), out=folder / "out"), folder


@pytest.mark.slow
def test_every_method_has_the_same_tries_on_validation_parts(study):
    found, folder = study
    tries = by_method(found.tries)
    assert {method: len(some) for method, some in tries.items()} == {"vaccine": 2, "antidote": 2}
    for some in tries.values():
        [chosen] = [one for one in some if one.chosen]
        assert chosen.rank == min(one.rank for one in some)
    tried = json.loads((folder / "out/tuning/results.json").read_text())
    tested = json.loads((folder / "out/results.json").read_text())
    assert any("validation" in text for text in tried["deviations"])
    assert not any("validation" in text for text in tested["deviations"])
    assert not {cell["seed"] for cell in tried["cells"]} & {cell["seed"] for cell in tested["cells"]}


@pytest.mark.slow
def test_the_table_has_all_entrants_and_is_computed_from_the_runs_cells(study):
    found, folder = study
    names = [one.entrant.name for one in found.standings]
    assert names[0] == "undefended"
    assert set(names) == {
        "undefended",
        "vaccine",
        "lisa",
        "lisa, no-proximal-term",
        "antidote",
        "antidote, random-mask",
    }
    cells = {cell["id"]: cell for cell in json.loads((folder / "out/results.json").read_text())["cells"]}
    for one in found.standings:
        assert [len(seed) for seed in one.entrant.cells] == [2, 2]
        assert (one.knowing is None) == (one.entrant.name not in ("vaccine", "antidote", "lisa"))
        mine = [cells[cell] for seed in one.entrant.cells for cell in seed]
        assert {cell["attack"]["max_steps"] for cell in mine} == {3, 4}
        scores = [cell["rates"]["harmful_score"] for cell in mine]
        if not any(score["unscored"] for score in scores):
            mean = sum(score["value"] for score in scores) / len(scores)
            assert one.rates["harmful_score"]["value"] == pytest.approx(mean)
    rows = list(csv.reader((folder / "out/benchmark.csv").open()))
    assert rows[0] == [*TITLES, *KNOWING_TITLES] and len(rows) == 1 + len(found.standings)
    assert json.loads((folder / "out/benchmark.json").read_text())["points"] == found.points
    page = (folder / "out/report.html").read_text()
    assert "All tuning tries" in page or "tries" in page


def _undefended(cell):
    return (cell["alignment"], cell["finetuning"], cell["repair"]) == ("sft", "sft", "none")


@pytest.mark.slow
def test_each_method_meets_the_worst_attack_of_those_that_its_rule_suggests(study):
    found, folder = study
    attacks = by_method(found.knowing)
    assert {method: len(some) for method, some in attacks.items()} == {"vaccine": 3, "lisa": 2, "antidote": 3}
    cells = {cell["id"]: cell for cell in json.loads((folder / "out/results.json").read_text())["cells"]}
    rows = {row["method"]: row for row in csv.DictReader((folder / "out/benchmark.csv").open())}
    for method, some in attacks.items():
        [chosen] = [one for one in some if one.chosen]
        assert chosen.scores.harmful_score == max(one.scores.harmful_score or 0 for one in some if one.within)
        [standing] = [one for one in found.standings if one.entrant.name == method]
        assert standing.knowing.attack == chosen.attack == rows[method]["who knows"]
        assert rows[method]["undefended, knowing"]
        if chosen.number == 0:
            assert standing.knowing.rates == standing.rates and standing.knowing.breaks_at == standing.breaks_at
            assert standing.knowing.undefended == found.standings[0].rates
            difference = standing.against["harmful_score"]
            assert {**standing.knowing.against, "p_holm": None} == {**difference, "p_holm": None}
        else:
            own = {cell["attack"]["kind"] for cell in cells.values() if _undefended(cell) and cell["attack"]}
            assert chosen.attack.split()[0] in own
    tried = json.loads((folder / "out/knowing/results.json").read_text())["cells"]
    tried = [cell for cell in tried if cell["attack"]]
    steps = {(cell["attack"]["kind"], cell["attack"]["max_steps"]) for cell in tried}
    assert {("scheduled", 9), ("scheduled", 12)} <= steps  # three times as long, at both points of the grid
    assert {cell["trained"]["rows"] for cell in tried} == {
        cell["trained"]["rows"] for cell in cells.values() if cell["attack"]
    }


@pytest.mark.slow
def test_a_second_call_computes_nothing_and_writes_the_same(study, inputs, monkeypatch):
    found, folder = study
    monkeypatch.setenv("MITHRIDATE_STORE", str(folder / "store"))
    before = {path: (folder / "store" / path / "stage.json").stat().st_mtime_ns for path in stages(folder / "store")}
    text = (folder / "out/benchmark.md").read_text()
    again = benchmark(file(inputs, knowing=True), out=folder / "out")
    assert (folder / "out/benchmark.md").read_text() == text and again.tries == found.tries
    assert before == {p: (folder / "store" / p / "stage.json").stat().st_mtime_ns for p in stages(folder / "store")}
    with pytest.raises(InputError, match="holds"):  # another benchmark's folder
        benchmark(file(inputs, seeds=[0, 2]), out=folder / "out")


@pytest.mark.slow
def test_another_benchmark_takes_the_folders_place_with_what_was_tried_by_who_knows(
    study, inputs, tmp_path, monkeypatch
):
    _, folder = study
    monkeypatch.setenv("MITHRIDATE_STORE", str(shutil.copytree(folder / "store", tmp_path / "store")))
    out = shutil.copytree(folder / "out", tmp_path / "out")
    other = {"methods": {}, "as_given": {"vaccine": {"rho": 0.05}}, "seeds": [0], "controls": False}
    found = benchmark(file(inputs, knowing=True, **other), out=out, replace=True)
    tried = json.loads((out / "knowing/results.json").read_text())["cells"]
    assert {one.method for one in found.knowing} == {"vaccine"} and not (out / "tuning").exists()
    assert {cell["alignment"] for cell in tried if cell["attack"] and not _undefended(cell)} == {"vaccine"}


@pytest.mark.slow
def test_the_results_page_is_a_function_of_what_is_kept(study, tmp_path, monkeypatch, capsys):
    _, folder = study
    monkeypatch.setenv("MITHRIDATE_STORE", str(folder / "store"))
    kept, pages = tmp_path / "kept" / "name", [tmp_path / f"{i}.md" for i in range(3)]
    first = [str(folder / "out"), "--keep", str(kept), "--note", "a rehearsal", "--out", str(pages[0])]
    assert results.main(first) == 0
    text = pages[0].read_text()
    assert (folder / "out/benchmark.md").read_text().strip() in text and "- a rehearsal." in text
    made = json.loads((kept / "made_with.json").read_text())
    assert sum(one["stages"] for one in made["computers"]) == len(stages(folder / "store"))
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "none"))  # what is kept is enough
    assert results.main([str(kept), "--out", str(pages[1])]) == 0 and pages[1].read_text() == text
    table = json.loads((kept / "benchmark.json").read_text())
    table["standings"][1]["rates"]["harmful_score"]["value"] = 0.123
    (kept / "benchmark.json").write_text(json.dumps(table))
    assert results.main([str(kept), "--out", str(pages[2])]) == 0 and pages[2].read_text() != text
    record = next(iter(sorted(kept.glob("verdicts/*.parquet"))))
    record.write_bytes(record.read_bytes() + b" ")
    assert results.main([str(kept), "--out", str(pages[2])]) == 3
    assert f"{record.name}: is not what" in capsys.readouterr().err


def test_a_store_limit_that_is_too_small_ends_it_before_anything_is_computed(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    with pytest.raises(InputError, match="store_limit: the store would come to hold about"):
        benchmark(file(inputs, store_limit=1e-6), out=tmp_path / "out")
    assert not (tmp_path / "out").exists() and not stages(tmp_path / "store")


def test_what_would_stop_the_final_runs_is_said_before_the_tries(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    for verb in (benchmark, planned):  # a dry run says it too
        with pytest.raises(InputError, match="one cycle is 2 alignment"):
            list(verb(file(inputs, as_given={"lisa": {"align_steps": 2, "finetune_steps": 8}}), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists() and not stages(tmp_path / "store")


def test_knowing_with_a_plain_attack_of_another_kind_is_said_before_the_tries(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    noice = {"kind": "noice", "harmful_ratio": 0.25, "size": 8}
    for changes in (
        {"experiment": plain(inputs, finetune__attack=noice)},
        {"attack": {"finetune.attack": [{"harmful_ratio": 0.25, "size": 8}, noice]}},  # at a point of the grid
    ):
        for verb in (benchmark, planned):
            with pytest.raises(InputError, match=r"knowing: .* the plain one is noice"):
                list(verb(file(inputs, knowing=True, **changes), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists() and not stages(tmp_path / "store")


def test_a_dry_run_says_what_is_tried_and_computes_nothing(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    lines = list(planned(file(inputs)))
    text = "\n".join(lines)
    assert "2 attacks: max_steps 3; max_steps 4" in text and "vaccine, double: rho 0.05; rho 0.1" in text
    assert "antidote, double: ratio 0.1; ratio 0.4" in text and "(not tuned)" in text and "on disk" in text
    assert not stages(tmp_path / "store")


def test_a_dry_run_looks_at_the_folder_as_a_run_does(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    (tmp_path / "out").write_text("mine")
    for verb in (planned, benchmark):
        with pytest.raises(InputError, match=r"--out .*out: is a file\. Give a folder"):
            list(verb(file(inputs), out=tmp_path / "out"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files that no run wrote \(notes\.txt\)"):
        list(planned(file(inputs), out=tmp_path / "other"))
    assert list(planned(file(inputs), out=tmp_path / "other", replace=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": {"vacine": {"rho": [1, 2]}}}, r"methods\.vacine: no such method.*vaccine"),
        ({"methods": {"vaccine": {}}}, r"methods\.vaccine\.rho: needs 2 values to try"),
        ({"methods": {"vaccine": {"rho": []}}}, r"methods\.vaccine\.rho: expected 2 different values"),
        ({"methods": {"vaccine": {"rho": [1, 2, 3]}}}, r"expected 2 different values \(tries: 2\)"),
        ({"methods": {"vaccine": {"rho": {"low": 2, "high": 1}}}}, "low below high"),
        ({"methods": {"vaccine": [{"rho": 1}, {"rho": 1}]}}, "got 2, some of them the same"),
        ({"methods": {"vaccine": [{}, {"rho": 2}]}}, "got 2, some of them the same"),  # 2.0 is the default
        (
            {"methods": {"vaccine": [{"sites": ["a", "b"]}, {"every": 1, "sites": ["a", "b"]}]}},
            "some of them the same",
        ),
        ({"methods": {"vaccine": [{"rho": 1}]}}, r"different settings \(tries: 2\), got 1$"),
        ({"methods": {"vaccine": {"rho": [1, 1.0]}}}, r"methods\.vaccine\.rho: expected 2 different values"),
        ({"attack": {"finetune.attack.harmful_ratio": [0, 0.0]}}, r"harmful_ratio: expected different values"),
        ({"methods": {}, "as_given": {}}, "methods: names none"),
        ({"as_given": {"vaccine": {}}}, r"as_given\.vaccine: is tuned already"),
        ({"seeds": [0, 0]}, "seeds: expected different"),
        ({"tuning_seed": 1}, r"tuning_seed: 1 is one of `seeds`"),
        ({"attack": {"seed": [1]}}, r"attack\.seed: the attacker chooses under"),
        ({"attack": {"evaluate.resistance": [[1], [2]]}}, r"attack\.evaluate\.resistance: .* changes no attack"),
        ({"attack": {"finetune.attack.size": []}}, r"attack\.finetune\.attack\.size: expected different values"),
        ({"tries": 0}, "tries: expected at least 1"),
        ({"bounds": {"accuracy": 2}}, r"bounds\.accuracy: expected a fraction"),
        ({"bound": {}}, "bound"),
        ({"store_limit": -1}, "store_limit: expected GB above 0"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(inputs, changes, words):
    with pytest.raises(InputError, match=words):
        load_benchmark(file(inputs, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(
            ({"as_given": {name: {}}}, rf"as_given\.{name}: \S*{name}\.{field}: missing")
            for name, field in [
                *(("ewc", "lam"), ("kl", "lam"), ("ldifs", "rho"), ("lowerlr", "factor"), ("ptst", "system")),
                *(("safetymix", "share"), ("resta", "alpha")),
            ]
        ),
        (
            {"methods": {"vaccine": {"rho": [0.1, 0.2], "rhoo": 1}}},
            r"methods\.vaccine: align\.defense\.vaccine\.rhoo: no such field; did you mean `rho`",
        ),
        (
            {"methods": {"vaccine": {"rho": [0.1, "high"]}}},
            r"vaccine\.rho: expected number, got \"high\"",
        ),  # no first try
    ],
)
def test_settings_that_make_no_method_are_refused_and_no_internal_error(inputs, tmp_path, changes, words):
    for knowing in (False, True):
        with pytest.raises(InputError, match=words):
            list(planned(file(inputs, knowing=knowing, **changes), out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finetune__defense": {"lisa": {}}}, "has a defense or a repair of its own"),
        ({"sweep": {"seed": [0, 1]}}, "experiment: has a sweep"),
        ({"finetune": None}, "experiment.finetune: none"),
        ({"budget": {"accuracy": 0.1}}, "experiment: has a budget"),
    ],
)
def test_an_experiment_that_is_not_the_undefended_one_is_refused(inputs, changes, words):
    with pytest.raises(InputError, match=words):
        load_benchmark(file(inputs, experiment=plain(inputs, **changes)))


@pytest.mark.parametrize("changes", [{}, {"methods": {}, "as_given": {"vaccine": {"rho": 0.1}}, "knowing": True}])
@pytest.mark.parametrize(
    ("role", "lost", "rate", "words"),
    [
        ("task", "validation_share", "accuracy", r"data\.task has no validation part\. Give its validation_share"),
        ("task", "name", "accuracy", r"data\.task has no `name` by which its answers are scored"),
        ("test_benign", "validation_share", "benign_refusal", r"data\.test_benign has no validation part"),
        ("test_benign", None, "benign_refusal", r"there is no data\.test_benign\. Give one"),
    ],
)
def test_a_bound_on_what_is_not_measured_is_refused_before_anything_is_computed(
    inputs, tmp_path, monkeypatch, changes, role, lost, rate, words
):
    """Else every attack by who knows, and every try, would count as beyond it, and each method as robust."""
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    made = plain(inputs)
    if lost is None:
        del made["data"][role]
    else:
        for field in ("validation_share", "test", "name") if lost == "name" else (lost,):
            del made["data"][role][field]
    asked = file(inputs, experiment=made, bounds={}, **changes)
    chooses = rate == "accuracy" or "knowing" not in changes
    for verb in (planned, benchmark) if chooses else ():
        with pytest.raises(InputError, match=rf"bounds\.{rate}: {words}.*, or set bounds\.{rate}: null"):
            list(verb(asked, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists() and not stages(tmp_path / "store")
    asked = asked | {"bounds": {rate: None}, "attack": {}, "seeds": [0]}
    assert list(planned(asked, out=tmp_path / "out"))


def test_a_file_on_disk_names_its_experiment_relative_to_itself(inputs, tmp_path, capsys):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(plain(inputs)))
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(file(inputs, experiment="base.yaml")))
    given, found, base = load_benchmark(tmp_path / "bench.yaml")
    assert base == tmp_path and found.topology == "double" and given.seed_of_tries not in given.seeds
    assert main(["benchmark", str(tmp_path / "no.yaml")]) == 3
    assert "cannot be read as a benchmark" in capsys.readouterr().err


def test_ranges_are_spread_evenly_and_on_a_log_scale_where_they_are_wide(inputs):
    def rho(low, high, tries):
        changes = {"methods": {"vaccine": {"rho": {"low": low, "high": high}}}, "tries": tries}
        given, made, _ = load_benchmark(file(inputs, **changes))
        return [one["rho"] for one in arms_of(given, made)[0].settings]

    assert rho(0.1, 0.5, 3) == [0.1, 0.3, 0.5] and rho(0.01, 1.0, 3) == [0.01, 0.1, 1.0] and rho(2.0, 4.0, 1) == [3.0]


def test_the_rule_takes_the_lowest_score_within_the_bounds_and_else_the_least_beyond(inputs):
    given, made, _ = load_benchmark(file(inputs, methods={"vaccine": {"rho": [0.1, 0.2, 0.3]}}, tries=3))
    [arm, _] = arms_of(given, made)
    bounds, undefended = Bounds(accuracy=0.05), {"double": MeanScores(0.9, 0.9, 0.1, 0.0)}

    def chosen(*scores):
        found = choose([arm], {("vaccine", "double", i): s for i, s in enumerate(scores, 1)}, undefended, bounds)
        return next(one.number for one in found if one.chosen)

    mild, strong, costly = (
        MeanScores(0.6, 0.9, 0.1, 0.0),
        MeanScores(0.3, 0.86, 0.1, 0.0),
        MeanScores(0.0, 0.5, 0.1, 0.0),
    )
    assert chosen(mild, strong, costly) == 2
    worse, worst = MeanScores(0.2, 0.7, 0.1, 0.0), MeanScores(0.1, 0.4, 0.1, 0.0)
    assert chosen(worst, worse, costly) == 2
    assert chosen(MeanScores(0.1, None, 0.1, 0.0), strong, costly) == 2  # what was not measured is no gain
    assert excess(strong, undefended["double"], bounds) == 0 and excess(costly, undefended["double"], bounds) == 0.35
    assert excess(costly, undefended["double"], Bounds(accuracy=None)) == 0


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples/benchmarks").glob("*.yaml")), ids=str)
def test_the_examples_can_be_planned(path):
    given, made, _ = load_benchmark(path)
    assert all(len(arm.settings) == given.tries for arm in arms_of(given, made) if arm.tuned)


def test_who_knows_a_rule_takes_the_worst_attack_that_leaves_the_task():
    [arm] = arms_of(*load_benchmark(FILE | {"methods": {}, "as_given": {"vaccine": {"rho": 0.1}}})[:2])
    scores = {
        0: MeanScores(0.3, 0.9, 0.1, 0.0),
        1: MeanScores(0.9, 0.8, 0.1, 0.0),  # loses the task
        2: MeanScores(0.6, 0.86, 0.1, 0.0),
    }

    def chosen(scores, **bounds):
        found = choose_attack(arm, {"rho": 0.1}, scores, Bounds(**bounds))
        return next(one.number for one in found if one.chosen)

    assert chosen(scores) == 2 and chosen(scores, accuracy=None) == 1
    assert chosen(scores | {2: MeanScores(0.3, 0.9, 0.1, 0.0)}) == 0  # no better than the plain attack
    assert chosen(scores | {2: MeanScores(0.9, None, 0.1, 0.0)}) == 0  # what was not measured is not within


def test_a_method_that_suggests_no_attack_is_not_shown_as_having_met_one(tmp_path):
    as_given = {"lowerlr": {"factor": 1.0}, "vaccine": {}}  # the first changes nothing, and has no rule to know
    given, made, _ = load_benchmark(FILE | {"methods": {}, "as_given": as_given, "knowing": True, "seeds": [0]})
    chosen = settings_of(arms_of(given, made), ())
    assert [method for method, _ in attacked_runs(given, made, chosen, given.points())] == ["vaccine"]
    nothing = dict.fromkeys(RATES)
    plain, method, control, met = (
        Standing(Entrant(name, "double", {}, [], of), nothing, nothing, None, None, None, None)
        for name, of in (("undefended", None), ("lowerlr", None), ("vaccine, c", "vaccine"), ("vaccine", None))
    )
    met = replace(met, knowing=UnderKnowing("scheduled (leap 10)", nothing, nothing, None, None))
    found = Benchmark(tmp_path, given, given.points(), [], [], [plain, method, control, met], {}, {})
    assert [row[-len(KNOWING_TITLES) :] for row in table_of(found)] == [
        *([""] * 5, [*[""] * 4, "none suggested"], [""] * 5, [*[""] * 4, "scheduled (leap 10)"]),
    ]


def test_the_demos_tuning_is_on_the_demos_experiment_with_as_many_tries_for_each():
    path = Path(__file__).parents[2] / "examples/benchmarks/demo.yaml"
    given, made, _ = load_benchmark(path)
    assert canonical(made) == canonical(load_experiment(recipe()["experiment"]))
    defenses = {name for cell in demo_experiments() for name in arm_names(cell)}
    assert set(given.methods) == defenses and {len(arm.settings) for arm in arms_of(given, made)} == {3}
    chosen = {name: settings for cell in demo_experiments() for name, settings in arm_names(cell).items()}
    for name, settings in chosen.items():
        tried = [arm.settings for arm in arms_of(given, made) if arm.method == name]
        assert all(settings in some for some in tried), f"what the demo has of {name} is among the tries"


def arm_names(cell):
    """The methods of an experiment with their settings."""
    return {**(cell.align.defense if cell.align else {}), **cell.finetune.defense, **cell.repair}


@pytest.mark.slow
def test_a_dry_run_of_the_demos_tuning_says_what_is_tried(tmp_path, monkeypatch):
    """Without the estimate at its end, which traces every kind of stage."""
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    path = Path(__file__).parents[2] / "examples/benchmarks/demo.yaml"
    asked = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    asked |= {"topologies": ["double", "single"], "attack": {"finetune.training.max_steps": [30, 50]}}
    lines = list(takewhile(lambda line: not line.startswith("then "), planned(asked)))
    assert lines[0] == "2 attacks: max_steps 30; max_steps 50"
    assert lines[1].startswith("8 methods and topologies with 3 tries each on validation parts")
    assert [line.split(":")[0].strip() for line in lines[2:]] == [
        f"{method}, {topology}"
        for topology in ("double", "single")
        for method in ("vaccine", "booster", "lisa", "antidote")
    ]
