"""The benchmarks run, on tiny models; and the naive rules that they measure against are the papers' rules."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from tests.defenses import reference  # noqa: E402
from tests.defenses.helpers import batch_of, error, model, rows, trainer_for, weights  # noqa: E402

measure = pytest.importorskip("measure")
naive = pytest.importorskip("naive")
steps = pytest.importorskip("steps")
pipeline = pytest.importorskip("pipeline")
growth = pytest.importorskip("growth")
grid = pytest.importorskip("grid")

USER, HARMFUL = rows("user"), rows("harmful!")


def moved(net, folder, cls, own, **args):
    """What a naive trainer does to the weights."""

    class Own(cls):
        def __init__(self, **kwargs):
            super().__init__(**kwargs, **own)

    before = weights(net)
    trainer_for(net, folder, cls=Own, data=USER, exact=True, **args).train()
    return [b - a for b, a in zip(before.values(), weights(net).values(), strict=True)]


# -- the naive rules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_naive_vaccine_is_the_papers_rule(kind, tmp_path):
    want = reference.vaccine(model(kind), [batch_of(USER, tmp_path)], 1.5)
    assert error(moved(model(kind), tmp_path, naive.NaiveVaccine, {"rho": 1.5}), want) < 1e-5  # 1e-7 on the norm


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_naive_booster_is_the_papers_rule(kind, tmp_path):
    want = reference.booster(model(kind), batch_of(USER, tmp_path), batch_of(HARMFUL, tmp_path), 0.3, 2.0)
    own = {"side": HARMFUL, "alpha": 0.3, "lam": 2.0}
    assert error(moved(model(kind), tmp_path, naive.NaiveBooster, own), want) < 1e-5


def test_naive_lisa_is_the_papers_rule(tmp_path):
    rule = {"align_steps": 1, "finetune_steps": 2, "rho": 0.5}
    want, user, safe = model(), batch_of(USER, tmp_path), batch_of(HARMFUL, tmp_path)
    start = [p.detach().clone() for p in reference.trainable(want)]
    reference.lisa(want, safe, user, steps=5, lr=0.1, proximal_start=0.0, **rule)
    wanted = [b - p.detach() for p, b in zip(reference.trainable(want), start, strict=True)]
    own = {"side": HARMFUL, **rule}
    got = moved(model(), tmp_path, naive.NaiveLisa, own, max_steps=5, learning_rate=0.1)
    assert error(got, wanted) < 1e-9


def test_naive_antidote_marks_what_the_library_marks():
    from mithridate.repairs.antidote import Antidote
    from mithridate.repairs.input_norms import token_ids
    from tests.tiny import tiny_tokenizer

    net = model("lora", torch.float32)
    net.set_attn_implementation("sdpa")
    records = [{"prompt": f"{i} a question", "response": "an answer" * (i + 1)} for i in range(5)]
    masks = naive.antidote(net, token_ids(records, tiny_tokenizer()), 0.2)
    report = Antidote(ratio=0.2).apply(net, records, tiny_tokenizer())
    assert masks.keys() == report.mask.shapes.keys()
    assert all(torch.equal(masks[n], report.mask[n]) for n in masks)


# -- measuring --------------------------------------------------------------------------------------------------------


def test_trainings_take_turns_step_by_step(tmp_path):
    from transformers import TrainerCallback

    order = []

    class Note(TrainerCallback):
        def __init__(self, name):
            self.name = name

        def on_step_end(self, args, state, control, **kwargs):
            order.append((self.name, state.global_step))

    def one(name, count):
        return trainer_for(model(), tmp_path, data=USER, max_steps=count, callbacks=[Note(name)], learning_rate=0.01)

    seconds = measure.Relay({"a": one("a", 3), "b": one("b", 2), "c": one("c", 3)}).run()
    assert order == [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2), ("c", 2), ("a", 3), ("c", 3)]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 2, "c": 3}
    assert all(t > 0 for times in seconds.values() for t in times)


def test_an_error_in_one_training_ends_all(tmp_path):
    class Broken(steps.DefenseTrainer):
        def training_step(self, *args, **kwargs):
            raise ValueError("broken")

    good = trainer_for(model(), tmp_path, data=USER, max_steps=3)
    bad = trainer_for(model(), tmp_path, data=USER, max_steps=3, cls=Broken)
    with pytest.raises(ValueError, match="broken"):
        measure.Relay({"good": good, "bad": bad}).run()


def test_peak_bytes_is_exact():
    def work():
        a = torch.empty(1 << 20, dtype=torch.uint8)
        del a
        b = torch.empty(3 << 20, dtype=torch.uint8)
        c = torch.empty(2 << 20, dtype=torch.uint8)
        del b, c

    assert measure.peak_bytes(work) == pytest.approx(5 << 20, rel=0.001)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", ["lisa", "vaccine", "booster"])
@pytest.mark.slow
def test_the_memory_a_defense_takes_beyond_plain_training(name, kind, tmp_path):
    """Vaccine: the perturbations. Booster: two copies of the trained weights. Lisa: one. And little else."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "attn_implementation": "eager"}
    long = rows("a rather long question, so that activations count", 8)
    side = rows("a rather long question, so that activations grow!", 8)
    from mithridate.defenses.booster import Booster
    from mithridate.defenses.lisa import Lisa
    from mithridate.defenses.vaccine import Vaccine

    defense = {
        "lisa": lambda: Lisa(alignment_dataset=side, align_steps=1, finetune_steps=1, proximal_start=0.0),
        "vaccine": lambda: Vaccine(rho=1.0),
        "booster": lambda: Booster(harmful_dataset=side),
    }[name]
    seen = []

    def peak(defense):
        net = model(kind, torch.float32, **sizes)
        t = trainer_for(
            net, tmp_path, defense=defense, data=long, max_steps=2, optim="adamw_torch", pad_to_multiple_of=96
        )
        collate = t.data_collator
        t.data_collator = lambda examples: seen.append(collate(examples)) or seen[-1]
        trained = sum(p.numel() * 4 for p in net.parameters() if p.requires_grad)
        return measure.peak_bytes(t.train), trained

    (plain, trained), (defended, _) = peak(None), peak(defense())
    shape = seen[0]["input_ids"].shape
    perturbations = sizes["num_hidden_layers"] * shape[0] * shape[1] * sizes["hidden_size"] * 4
    allowed = {"lisa": trained, "vaccine": perturbations, "booster": 2 * trained}[name]
    block = 4 << 20  # what Lisa holds of a difference at a time
    slack = 0.02 * plain + (min(block, trained) if name == "lisa" else 0)
    assert defended - plain <= allowed + slack


# -- the scripts ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_steps_defenses(tmp_path, capsys):
    out = tmp_path / "steps.json"
    result = steps.main(
        ["defenses", "--tiny", "--rounds", "5", "--accumulation", "2", "--weights", "full", "--out", str(out)]
    )
    names = {"plain", "lisa", "vaccine", "booster", "naive lisa", "naive vaccine", "naive booster"}
    assert names < result["ratios"].keys() and result["ratios"]["plain"]["median"] == 1
    assert result["peak_bytes"]["naive booster"] > result["peak_bytes"]["plain"]
    steps.main(["table", str(out)])
    assert "| vaccine |" in capsys.readouterr().out


@pytest.mark.slow
def test_steps_antidote_and_plain(tmp_path, capsys):
    result = steps.main(["antidote", "--tiny", "--rounds", "2", "--out", str(tmp_path / "a.json")])
    assert result["same_entries"] > 0.999
    result = steps.main(["plain", "--tiny", "--rounds", "2", "--out", str(tmp_path / "b.json")])
    assert len(result["tokens_per_second"]) == 5
    only = ["plain", "--tiny", "--rounds", "1", "--only", "labels only"]
    assert list(steps.main(only)["tokens_per_second"]) == ["labels only"]
    result = steps.main(["profile", "--tiny", "--out", str(tmp_path / "c.json")])
    capsys.readouterr()
    steps.main(["table", *(str(tmp_path / f"{name}.json") for name in "abc")])
    shown = capsys.readouterr().out
    assert "tokens/s" in shown and "| aten::mm |" in shown
    assert all("aten::mm" in own for own in result["seconds"].values())


@pytest.mark.slow
def test_pipeline(tmp_path, capsys):
    paths = [str(tmp_path / "train.json"), str(tmp_path / "evaluate.json")]
    pipeline.main(["train", "--tiny", "--steps", "10", "--out", paths[0]])
    result = pipeline.main(
        ["evaluate", "--tiny", "--prompts", "4", "--new-tokens", "6", "--one-at-a-time", "2", "--out", paths[1]]
    )
    assert result["same_answers"] == 1
    pipeline.main(["table", *paths])
    shown = capsys.readouterr().out
    assert all(f"| {name} |" in shown for name in ("align", "finetune", "repair", "evaluate", "end to end"))


def test_pipeline_scales_what_it_did_not_run():
    train = {"part": "train", "seconds": {"align": {"ours": [9.0, 1.0, 3.0], "papers": [9.0, 4.0, 8.0]}}}
    test = {"part": "evaluate", "seconds": {"harmful": {"ours": 5.0, "papers, a part": 1.0, "papers, scaled": 50.0}}}
    found = pipeline.summary([train, test])
    assert found["align"] == {"ours": 2 * 112, "papers": 6 * 112, "ratio": 3}
    assert found["evaluation"]["ratio"] == 10
    assert found["end to end"]["ratio"] == pytest.approx((6 * 112 + 50) / (2 * 112 + 5))


@pytest.mark.slow
def test_growth(tmp_path, capsys):
    paths = [str(tmp_path / f"{name}.json") for name in ("axes", "processes", "largest")]
    growth.main(["axes", "--tiny", "--rounds", "2", "--out", paths[0]])
    growth.main(["processes", "--tiny", "--rounds", "2", "--out", paths[1]])
    held = growth.main(["largest", "--tiny", "--gigabytes", "4", "--out", paths[2]])["held"]
    assert all(held[m]["width"] == 64 for m in growth.METHODS)
    growth.main(["table", *paths])
    assert "| width | 32 to 64 |" in capsys.readouterr().out


def test_an_exponent_is_fitted_with_its_interval():
    fit = growth.exponent([1, 2, 4, 8], [3 * x**1.5 for x in (1, 2, 4, 8)])
    assert (
        fit["value"] == pytest.approx(1.5) and fit["low"] == pytest.approx(1.5) and fit["high"] == pytest.approx(1.5)
    )
    xs, ys = [1, 2, 4, 8], [1.0, 2.2, 3.8, 8.3]
    noisy = growth.exponent(xs, ys)
    (slope, _), covariance = np.polyfit(np.log(xs), np.log(ys), 1, cov=True)
    half = 4.302653 * covariance[0, 0] ** 0.5  # Student's t at 0.975 with 2 degrees of freedom
    assert noisy == pytest.approx({"value": slope, "low": slope - half, "high": slope + half})


@pytest.mark.slow
def test_grid(tmp_path, capsys):
    result = grid.main(["run", "--rates", "1", "--folder", str(tmp_path), "--out", str(tmp_path / "grid.json")])
    # 5 seeds x 3 defenses aligned, each attacked at 9 ratios; a training and an evaluation for each of these models
    assert (result["cells"], result["stages"], result["rows"]) == (150, 300, 150 * 24)
    assert result["dry_run_lines"] == 300 + 1 and result["plan_seconds"] > 0 and result["peak_bytes"] >= 0
    result["peak_bytes"] = max(result["peak_bytes"], 1)  # so few cells fit into what the process had before
    (tmp_path / "grid.json").write_text(json.dumps(result))
    larger = {key: value * 10 if isinstance(value, int | float) else value for key, value in result.items()}
    (tmp_path / "larger.json").write_text(json.dumps(larger))
    grid.main(["table", str(tmp_path / "grid.json"), str(tmp_path / "larger.json")])
    shown = capsys.readouterr().out.splitlines()
    assert shown[2].startswith("| 150 | 300 |") and shown[4] == "| exponent | | " + " | ".join(["1.00"] * 5) + " |"
