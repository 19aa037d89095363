"""What the command line can ask for and no file can: services that are told of trainings, a model's own code."""

import json

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from mithridate import run
from mithridate.errors import InputError
from mithridate.models import local_model, resolve_model
from mithridate.pipeline.cell_export import export_cell
from mithridate.pipeline.context import Allowed
from mithridate.pipeline.executors.cells import task_of
from mithridate.pipeline.experiments import stages_of
from mithridate.pipeline.graph import Graph
from tests.pipeline.small import experiment, stages, write_inputs

CONFIG = """
from transformers import LlamaConfig

class MineConfig(LlamaConfig):
    model_type = "mine"
"""
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_mine import MineConfig

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    names = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    own = write_inputs(folder / "own") / "model"
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": names}))
    (own / "configuration_mine.py").write_text(CONFIG)
    (own / "modeling_mine.py").write_text(MODEL)
    return folder


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def test_a_service_is_told_and_the_stage_is_the_same_one(inputs, store, tmp_path, monkeypatch):
    told = []

    class Service(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append(state.global_step)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mine", Service)
    asked = experiment(inputs, align__training__max_steps=2, align__training__logging_steps=1)
    with pytest.raises(InputError, match="--report-to mine: the package of this service is not installed"):
        run(asked, out=tmp_path / "out", until="align", progress=False, report_to=["mine"])
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["mine"])
    with pytest.raises(InputError, match="--report-to mime: no such service; did you mean `mine`"):
        run(asked, out=tmp_path / "out", until="align", progress=False, report_to=["mime"])
    assert not told and not stages(store)
    run(asked, out=tmp_path / "out", until="align", progress=False, report_to=["mine"])
    assert told[:2] == [1, 2]
    [name] = stages(store)
    assert "report_to" not in (store / name / "stage.json").read_text()
    run(asked, out=tmp_path / "out", until="align", progress=False)
    assert stages(store) == [name]


def test_a_models_own_code_is_run_where_the_command_line_says_so_and_stands_in_the_key(inputs, store, tmp_path):
    asked = experiment(inputs / "own", align__training__max_steps=1, finetune="none")
    with pytest.raises(InputError, match=r"comes with Python code of its own.*--trust-remote-code"):
        run(asked, out=tmp_path / "out", progress=False)
    assert not stages(store)
    done = run(asked, out=tmp_path / "out", progress=False, trust_remote_code=True)
    [name] = stages(store, "align")
    assert json.loads((store / name / "stage.json").read_text())["config"]["remote_code"] is True
    with pytest.raises(InputError):
        export_cell(done.folder, done.cells[0], tmp_path / "exported")
    export_cell(done.folder, done.cells[0], tmp_path / "exported", trust_remote_code=True)
    assert (tmp_path / "exported" / "model.safetensors").exists()


def test_the_code_is_in_the_digest_and_only_there_where_it_is_run(inputs):
    own = str(inputs / "own" / "model")
    trusted = resolve_model(own, remote_code=True)
    assert trusted.remote_code and trusted.digest != resolve_model(own).digest
    file = inputs / "own" / "model" / "modeling_mine.py"
    file.write_text(MODEL + "\n# changed\n")
    assert local_model(own, remote_code=True).digest != trusted.digest
    plain = str(inputs / "model")
    assert resolve_model(plain, remote_code=True) == resolve_model(plain)  # there is none


def test_what_was_allowed_reaches_the_workers(inputs, store):
    from mithridate.experiment.config import load_experiment

    loaded = load_experiment(experiment(inputs, finetune="none", dtype="float32"))
    [chain] = stages_of([loaded], inputs, "e", False, None, Allowed(("mine",), False))
    [batch] = Graph([chain], "align").batches()
    task = task_of(batch, inputs)
    assert (task.report_to, task.remote_code) == (["mine"], False)
