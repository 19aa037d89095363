"""A judge in the filter's place: asked before the training, once for a row, its verdicts kept, refused where it is not
there."""

import json
from collections import Counter

import pytest

from mithridate import InputError, judges, run
from mithridate.judges.base import About, Judgement
from mithridate.pipeline import training
from mithridate.store import MANIFEST
from tests.pipeline.small import experiment, stages, write_inputs

ASKED: Counter = Counter()
OPEN: set[str] = set()


class StandIn:
    """Calls harmful what speaks of doors, and cannot tell of the film 3."""

    name, kind, content_known = "stand-in", "harm", True
    about = About("", "tiny", "", "")
    weights = "1"

    def identity(self):
        return {"judge": self.name, "model": self.weights}

    def judge(self, items):
        OPEN.add(self.name)
        for i, item in enumerate(items):
            ASKED[item] += 1
            told = "film 3 " not in item.prompt
            yield i, Judgement(("harmful" if "door" in item.prompt else "safe") if told else None, "", None)

    def close(self):
        OPEN.discard(self.name)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(judges, "_made", lambda name, cls, values: made(name, cls, values))
    monkeypatch.setitem(judges.REGISTRY.own, "stand-in", StandIn)
    ASKED.clear()
    return write_inputs(tmp_path / "inputs")


MAKE = judges._made


def made(name, cls, values):
    return cls() if cls is StandIn else MAKE(name, cls, values)


def asked_for(inputs, **fields):
    defense = {"filter": {"guard": "stand-in", **fields}}
    return experiment(inputs, finetune__defense=defense, finetune__attack__size=8, evaluate={"limit": 1})


def times_asked():
    """How often each row was asked about, of those that it can tell of."""
    return {times for item, times in ASKED.items() if "film 3 " not in item.prompt}


def filtered(done):
    return [cell["trained"].get("filtered") for cell in done.results["cells"] if cell["attack"]]


def test_it_is_asked_before_the_training_and_what_it_finds_is_left_out(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained, train = [], training.train

    def watched(trainer, *rest):
        trained.append((len(trainer.train_dataset), set(OPEN)))
        train(trainer, *rest)

    monkeypatch.setattr(training, "train", watched)
    done = run(asked_for(inputs), out="first", progress=False)
    [counts] = [found for found in filtered(done) if found]
    of_task = [item for item in ASKED if item.prompt.startswith("Is film")]
    untold = sum("film 3 " in item.prompt for item in of_task)
    assert counts == {"harmful": 2, "of_harmful": 2, "benign": untold, "of_benign": 6} and len(of_task) == 6
    assert (6 - untold, set()) in trained  # the judge was let go of by then
    assert set(ASKED.values()) == {1}

    store = tmp_path / "store"
    configs = [json.loads((store / name / MANIFEST).read_text())["config"] for name in stages(store, "finetune")]
    guards = {"filter" in config["defense"]: config.get("guards") for config in configs}
    assert guards == {True: {"filter.guard": {"judge": "stand-in", "model": "1"}}, False: None}

    before = len(configs)
    run(asked_for(inputs, refusals=False), out="second", progress=False)  # another training on the same rows
    assert times_asked() == {1} and len(stages(store, "finetune")) == before + 1
    monkeypatch.setattr(StandIn, "weights", "2")
    run(asked_for(inputs, refusals=False), out="third", progress=False)  # other weights: other verdicts, another stage
    assert times_asked() == {2} and len(stages(store, "finetune")) == before + 2


@pytest.mark.parametrize(
    ("guard", "words"),
    [
        ("stand-inn", r"finetune\.defense\.filter: guard: no such judge `stand-inn`.*stand-in"),
        ("coherence", r"finetune\.defense\.filter: guard: `coherence` is a judge of coherence; give one of harm"),
        ({"beaver-dam-7b": {"threshold": 2}}, r"filter: guard: beaver-dam-7b: threshold must be at least 0"),
        (
            {"beaver-dam-7b": {"model": "nobody/nothing"}},
            r"finetune\.defense\.filter\.guard: beaver-dam-7b: its model nobody/nothing is not on this machine",
        ),
    ],
)
def test_what_is_no_guard_or_not_there_is_refused_before_anything_is_computed(inputs, tmp_path, guard, words):
    with pytest.raises(InputError, match=words):
        run(asked_for(inputs, guard=guard), out=tmp_path / "out", progress=False)
    assert not ASKED and not stages(tmp_path / "store")
