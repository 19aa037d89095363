"""The JSON Schema of the experiment file takes what `run` takes, and refuses misspelt fields at their place."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from mithridate import cli
from mithridate.errors import InputError
from mithridate.experiment import schema as schema_module
from mithridate.experiment.config import canonical, expand, load_experiment, resolved_yaml, with_defaults
from mithridate.experiment.schema import experiment_schema
from mithridate.experiment.yaml12 import parse_yaml
from mithridate.methods.index import index
from mithridate.studies.demo import demo_experiments, recipe
from tests.pipeline.small import experiment

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def schema():
    made = experiment_schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return made


@pytest.fixture
def problems(schema):
    """The paths at which a file departs from the schema, the deepest of alternatives."""
    validator = jsonschema.Draft202012Validator(schema)

    def problems(raw):
        found = (jsonschema.exceptions.best_match([error]) for error in validator.iter_errors(raw))
        return [".".join(map(str, error.absolute_path)) for error in found]

    return problems


def test_the_command_prints_it(schema, capfd):
    assert cli.main(["schema"]) == 0
    assert json.loads(capfd.readouterr().out) == schema


def test_every_field_is_described_where_an_editor_shows_it(schema):
    own = ("Adapter", "Align", "Budget", "Evaluate", "Finetune", "Source")
    for part in (schema, *(schema["$defs"][name] for name in own)):
        assert all(field.get("description") for field in part["properties"].values())
    seed = schema["properties"]["seed"]["description"]
    assert seed == "of data, training and sampling. Expected: an integer from 0 to 4294967295."
    assert "Args" not in schema["description"] and "\n" not in schema["$defs"]["Source"]["description"]
    [booster] = [m for m in index() if m["name"] == "booster"]
    assert all(field["description"] for field in booster["fields"].values())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example(path, problems):
    assert problems(parse_yaml(path.read_text(), str(path))) == []


def test_the_demo_as_written_and_resolved(problems):
    assert problems(recipe()["experiment"]) == []
    for each in map(with_defaults, demo_experiments()):
        assert problems(parse_yaml(resolved_yaml(each), "resolved")) == []
        assert problems(canonical(each)) == []


def test_the_readmes_experiment_and_those_of_the_docs(problems):
    blocks = [
        parse_yaml(block, str(page))
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    files = [block for block in blocks if isinstance(block, dict) and {"model", "data"} <= block.keys()]
    assert files and all(problems(file) == [] for file in files)


def at(path, value, **more):
    return experiment(Path("inputs"), **{path.replace(".", "__"): value}, **more)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("align", "none"),
        ("align", None),
        ("align.defense", "none"),
        ("align.defense", "booster"),
        ("align.defense", {"booster": None}),
        ("align.defense", {"booster": {"alpha": 0.1}, "vaccine": {"rho": 1}}),
        ("align.defense", ["vaccine", {"booster": {"lam": 2}}]),
        ("finetune.defense", {"lisa": {"align_steps": 1, "finetune_steps": 9}}),
        ("finetune.attack", {"kind": "harmful", "harmful_ratio": 0.1, "size": 8}),
        ("repair", "antidote"),
        ("repair", {"antidote": {"ratio": 0.1, "targets": "update"}}),
        ("data.alignment", [{"source": "embedded"}, {"source": "a.jsonl", "take": 3, "share": [0, 0.5]}]),
        ("data.task.test", {"source": "b.jsonl", "columns": {"prompt": "text"}}),
        ("evaluate.generator", "transformers"),
        ("evaluate.generator", {"openai": {"base_url": "u", "model": "m", "revision": "r"}}),
        ("evaluate.judges", ["coherence", {"beaver-dam-7b": {"threshold": 0.4}}]),
        ("evaluate.tasks", {"sst2": {"source": "c.jsonl"}}),
        ("adapter.target_modules", "all-linear"),
        ("align.training", {"learning_rate": 1.0e-3, "warmup_steps": 0.1, "bf16": None}),
        ("align.training", {"eval_strategy": "no", "load_best_model_at_end": False, "save_strategy": "epoch"}),
        ("sweep", {"finetune.attack.harmful_ratio": [0, 0.1], "align.defense": ["none", "vaccine"], "seed": [0, 1]}),
        ("sweep", {"data.task.take": [10, 20]}),
        ("variants", [{}, {"align.defense": "vaccine", "topology": "single"}]),
        ("variants", {"plain": None, "vaccine": {"align.defense": "vaccine"}}),
        ("adapter", {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "layers_to_transform": [0]}),
    ],
)
def test_what_the_file_allows(path, value, problems):
    assert problems(at(path, value)) == []


def test_no_field_of_a_method_is_taken_for_one_that_no_file_may_have():
    """CTRAP's token is a text's. A benchmark writes each of its tries out in full, and reads it again."""
    for each in index():
        fields = {name: field["default"] for name, field in each["fields"].items() if "default" in field}
        attack = {"finetune__attack": {"kind": each["name"], **fields}}
        path = {"defenses": "align__defense", "repairs": "repair"}.get(each["kind"])
        made = experiment(Path("inputs"), **({path: {each["name"]: fields}} if path else attack))
        try:
            load_experiment(made)
        except InputError as error:  # of another stage, say
            assert "not here" not in str(error)


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("modle", "m", ""),
        ("topology", "both", "topology"),
        ("seed", "one", "seed"),
        ("align.trainig", {}, "align"),
        ("align.training.learning_rat", 0.1, "align.training"),
        ("align.training.learning_rate", "fast", "align.training.learning_rate"),
        ("align.training.output_dir", "x", "align.training"),
        ("align.training.eval_strategy", "steps", "align.training.eval_strategy"),
        ("align.training.eval_on_start", True, "align.training.eval_on_start"),
        ("align.training.load_best_model_at_end", True, "align.training.load_best_model_at_end"),
        ("align.training.save_strategy", "best", "align.training.save_strategy"),
        ("align.defense", "vacine", "align.defense"),
        ("align.defense", {"booster": {"lambda": 1}}, "align.defense.booster"),
        ("align.defense", {"booster": {"harmful_dataset": []}}, "align.defense.booster"),
        ("finetune.attack.ratio", 0.1, "finetune.attack"),
        ("repair", {"antidote": {"target": "update"}}, "repair.antidote"),
        ("data.alignmnt", {"source": "embedded"}, "data"),
        ("data.alignment", {"sorce": "embedded"}, "data.alignment"),
        ("evaluate.protocol", "hs/x", "evaluate.protocol"),
        ("evaluate.generator", {"openai": {"model": "m"}}, "evaluate.generator"),
        ("evaluate.judges", ["coherense"], "evaluate.judges.0"),
        ("evaluate.tasks", {"sst3": {"source": "c.jsonl"}}, "evaluate.tasks"),
        ("sweep", {"finetun.attack.size": [1]}, "sweep"),
        ("sweep", {"seed": 1}, "sweep.seed"),
        ("variants", [{"finetun.attack.size": 1}], "variants.0"),
        ("adapter", {"rr": 4}, "adapter"),
        ("adapter", {"use_dora": True}, "adapter"),
        ("adapter", {"init_lora_weights": "pissa"}, "adapter.init_lora_weights"),
    ],
)
def test_what_is_misspelt_or_of_another_type(path, value, where, problems):
    raw = at(path, value)
    found = problems(raw)
    assert found == [where]
    with pytest.raises(InputError):  # and `run` agrees
        for cell in expand(load_experiment(raw)):
            with_defaults(cell)


def test_the_index_of_fields_is_sftconfigs_and_loraconfigs():
    """Where the versions are others, the fields are asked of SFTConfig itself; with those of constraints.txt they must
    be what the index says."""
    known = json.loads(schema_module.TRAINING.read_text())
    if known["versions"] == schema_module._versions():
        assert known["schema"] == json.loads(json.dumps(schema_module.library_fields())), (
            "python -m mithridate.experiment.schema --write"
        )
    constraints = (ROOT / "constraints.txt").read_text()
    assert all(f"{name}=={version}" in constraints for name, version in known["versions"].items())


def test_other_versions_of_the_trainer_are_asked_themselves(monkeypatch, schema):
    monkeypatch.setattr(schema_module, "_versions", lambda: {"trl": "0"})
    assert experiment_schema() == schema
