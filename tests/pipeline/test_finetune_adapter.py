"""`finetune.adapter`: an attacker's own adapter, or all weights; absent, it changes no key that was ever recorded."""

from types import SimpleNamespace

import pytest

from mithridate.errors import InputError
from mithridate.experiment.config import load_experiment, with_defaults
from mithridate.experiment.roles import load_roles
from mithridate.pipeline.runner import run
from mithridate.pipeline.stages import ExperimentStages
from tests.pipeline.small import experiment, stages, write_inputs

# Recorded before the field was there: align, finetune, evaluate.
KEYS = {
    "double": ("16d4c3278860be59", "e9e1d40185d902e2", "ecdf094685df2acd"),
    "single": ("16d4c3278860be59", "0c98a78c4a786480", "771d01e96991054d"),
    "full": ("44100fd84d91cad6", "c13df273471d7973", "be470f27e9bf13b6"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def chain(inputs, **changes):
    loaded = load_experiment(experiment(inputs, **changes))
    base = SimpleNamespace(digest="base", remote_code=False)
    return ExperimentStages(loaded, SimpleNamespace(base=base, roles=load_roles(loaded.data), dtype="float32"))


@pytest.mark.parametrize("topology", KEYS)
def test_without_it_the_keys_are_those_of_before(inputs, topology):
    made = chain(inputs, topology=topology)
    assert tuple(stage.key[:16] for stage in (*made.stages(), made.evaluation("finetune"))) == KEYS[topology]


def test_with_it_the_alignment_is_the_same_and_the_fine_tune_another(inputs):
    changed = [{"r": 4, "lora_alpha": 8}, {"r": 2, "lora_alpha": 8}, "full"]
    keys = [[stage.key for stage in chain(inputs, finetune__adapter=own).stages()] for own in [None, *changed]]
    assert len({align for align, _ in keys}) == 1
    assert len({finetune for _, finetune in keys}) == len(keys)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"topology": "single", "finetune__adapter": "full"}, "finetune.adapter: topology: single goes on training"),
        ({"finetune__adapter": {"r": 0}}, "finetune.adapter.r: expected at least 1"),
        ({"finetune__adapter": {"rank": 4}}, "finetune.adapter.rank: no such field"),
        ({"finetune__adapter": "half"}, "finetune.adapter: expected"),
        ({"finetune__adapter": "full", "repair": "antidote"}, "and adapter: full .* trains none"),
    ],
)
def test_what_is_refused(inputs, changes, words):
    with pytest.raises(InputError, match=words):
        with_defaults(load_experiment(experiment(inputs, **changes)))


@pytest.mark.parametrize("own", ["full", {"r": 3, "lora_alpha": 3, "target_modules": ["v_proj"]}])
def test_it_trains_what_it_says(inputs, tmp_path, monkeypatch, own):
    import json

    from safetensors import safe_open

    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    done = run(experiment(inputs, finetune__adapter=own), out=tmp_path / "out", progress=False)
    [name] = stages(tmp_path / "store", "finetune")
    model = tmp_path / "store" / name / "model"
    if own == "full":
        assert (model / "model.safetensors").exists() and not (model / "adapter_config.json").exists()
    else:
        config = json.loads((model / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 3, ["v_proj"])
        with safe_open(model / "adapter_model.safetensors", "pt") as weights:
            assert {weights.get_tensor(key).shape[0] for key in weights.keys() if "lora_A" in key} == {3}  # noqa: SIM118
    given = done.results["cells"][-1]["attack"]["adapter"]
    assert given == "full" or given["r"] == 3
