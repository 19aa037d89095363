"""The experiment file: what it means, and that every mistake in it is named by its path, all at once."""

import os
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mithridate.errors import InputError
from mithridate.experiment.config import canonical, expand, load_cells, load_experiment, resolved_yaml, with_defaults
from mithridate.experiment.yaml12 import dump_yaml, parse_yaml

FILE = """
model: smollm2-135m            # embedded name, folder, or Hub id
seed: 0
topology: double               # single | double | full
adapter: {r: 16, lora_alpha: 32, lora_dropout: 0.0, target_modules: [q_proj, k_proj, v_proj]}
data:
  alignment:           {source: embedded}
  defender_harmful:    {source: embedded}
  attacker_harmful:    {source: embedded}
  calibration_harmful: {source: embedded}
  task:                {source: embedded, name: sentiment}
  test_harmful:        {source: embedded}
  test_benign:         {source: embedded}
align:    {defense: {booster: {alpha: 0.1, lam: 5.0}}, training: {learning_rate: 1e-3, max_steps: 105}}
finetune: {defense: none, attack: {harmful_ratio: 0.1, size: 200}, training: {learning_rate: 4.0e-4, max_steps: 50}}
repair:   {antidote: {ratio: 0.1, targets: update}}      # or none
evaluate: {protocol: hs/embedded-v1, generator: transformers, resistance: [20, 35]}
"""
SWEEP = "sweep:    {finetune.attack.harmful_ratio: [0, 0.1], seed: [0, 1, 2]}\n"


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(FILE)
    return path


def problems(source, *overrides) -> list[str]:
    """The lines of the one error, without the file's name."""
    with pytest.raises(InputError) as caught:
        with_defaults(load_experiment(source, overrides))
    lines = str(caught.value).splitlines()
    return [line.strip() for line in lines[1:]] or [lines[0].split(": ", 1)[1]]


# -- what the file means ------------------------------------------------------------------------------


def test_the_documented_file(file):
    experiment = load_experiment(file)
    assert experiment.model == "smollm2-135m" and experiment.topology == "double" and experiment.dtype == "auto"
    assert experiment.adapter["target_modules"] == ["q_proj", "k_proj", "v_proj"]
    assert experiment.align.defense == {"booster": {"alpha": 0.1, "lam": 5.0}}
    assert experiment.align.training == {"learning_rate": 0.001, "max_steps": 105}
    assert experiment.finetune.defense == {}
    assert (experiment.finetune.attack.harmful_ratio, experiment.finetune.attack.size) == (0.1, 200)
    assert experiment.repair == {"antidote": {"ratio": 0.1, "targets": "update"}}
    assert experiment.evaluate.resistance == [20, 35] and experiment.evaluate.part == "test"
    [task] = experiment.data["task"]
    assert (task.source, task.name) == ("embedded", "sentiment")
    assert expand(experiment) == [experiment]


def test_stages_can_be_left_out(file):
    assert load_experiment(file, ["align=none"]).align is None
    experiment = load_experiment({"model": "m", "data": {}})
    assert (experiment.align, experiment.finetune, experiment.repair) == (None, None, {})
    assert load_experiment({"model": "m", "data": {}, "align": None, "repair": "none"}).repair == {}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("none", {}),
        ("vaccine", {"vaccine": {}}),
        ("{vaccine: }", {"vaccine": {}}),
        ("{vaccine: {rho: 1}}", {"vaccine": {"rho": 1}}),
        ("{booster: {lam: 3}, vaccine: {}}", {"vaccine": {}, "booster": {"lam": 3}}),
        ("[booster, {vaccine: {rho: 1}}]", {"booster": {}, "vaccine": {"rho": 1}}),
        ("[{vaccine: {rho: 1}}, booster]", {"vaccine": {"rho": 1}, "booster": {}}),
    ],
)
def test_ways_to_write_a_defense(file, written, meant):
    defense = load_experiment(file, [f"align.defense={written}"]).align.defense
    assert defense == meant and list(defense) == list(meant)  # a list acts in its order, a mapping has none


def test_a_role_takes_one_source_or_several(file):
    several = "[{source: a.jsonl, take: 5}, {source: b.csv, columns: {prompt: question}}]"
    sources = load_experiment(file, [f"data.alignment={several}"]).data["alignment"]
    assert [s.source for s in sources] == ["a.jsonl", "b.csv"] and sources[1].columns == {"prompt": "question"}


def test_overrides_come_before_everything_else(file):
    experiment = load_experiment(
        file,
        [
            "finetune.attack.harmful_ratio=0.2",
            "align.defense=vaccine",
            "align.defense.vaccine.rho=0.5",
            "align.training.lr_scheduler_type=constant",
            "data.task.take=50",
            "evaluate.resistance=[10]",
            "adapter.target_modules=all-linear",
            "align.training.learning_rate=5e-4",
        ],
    )
    assert experiment.finetune.attack.harmful_ratio == 0.2 and experiment.align.defense == {"vaccine": {"rho": 0.5}}
    assert experiment.align.training["lr_scheduler_type"] == "constant" and experiment.data["task"][0].take == 50
    assert experiment.evaluate.resistance == [10] and experiment.adapter["target_modules"] == "all-linear"
    assert experiment.align.training["learning_rate"] == 0.0005
    # one that cures the file's own mistake
    file.write_text(FILE.replace("topology: double", "topology: triple"))
    assert load_experiment(file, ["topology=single"]).topology == "single"


def test_the_canonical_form_and_the_resolved_file_read_back(file, tmp_path):
    for text in (FILE, FILE + SWEEP):
        file.write_text(text)
        experiment = load_experiment(file, ["data.alignment.columns={prompt: '1e-3', response: 'no'}"])
        again = tmp_path / "again.yaml"
        again.write_text(resolved_yaml(experiment))
        assert load_experiment(again) == experiment == load_experiment(canonical(experiment))
        assert list(load_experiment(again).sweep) == list(experiment.sweep)
        assert canonical(load_experiment(again)) == canonical(experiment)


def test_it_needs_no_torch():
    code = "import sys, mithridate.experiment.config, mithridate.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- sweeps ------------------------------------------------------------------------------------------------


def test_a_sweep_is_a_product_in_order(file):
    file.write_text(FILE + SWEEP)
    cells = expand(load_experiment(file))
    assert [(c.finetune.attack.harmful_ratio, c.seed) for c in cells] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (0.1, 0),
        (0.1, 1),
        (0.1, 2),
    ]
    assert all(cell.sweep == {} for cell in cells)
    assert cells[3] == load_experiment(FILE_AS_DICT | {"sweep": {}})


FILE_AS_DICT = parse_yaml(FILE, "file")


def test_a_sweep_over_whole_stages_methods_and_sources(file):
    sweep = {
        "align": ["none", {"defense": "vaccine"}],
        "repair.antidote.ratio": [0.05, 0.1],
        "data.task.take": [10, 20],
        "topology": ["single", "full"],
    }
    cells = expand(load_experiment(FILE_AS_DICT | {"sweep": sweep}))
    assert len(cells) == 16
    assert [c.align and c.align.defense for c in cells[7:9]] == [None, {"vaccine": {}}]
    assert cells[4].repair["antidote"]["ratio"] == 0.1 and cells[2].data["task"][0].take == 20
    assert FILE_AS_DICT["repair"] == {
        "antidote": {"ratio": 0.1, "targets": "update"}
    }  # the caller's dict is untouched


def test_an_override_of_a_swept_field_fixes_it(file):
    file.write_text(FILE + SWEEP)
    cells = expand(load_experiment(file, ["seed=7"]))
    assert [(c.seed, c.finetune.attack.harmful_ratio) for c in cells] == [(7, 0), (7, 0.1)]
    cells = expand(load_experiment(file, ["sweep.seed=[4, 5]", "finetune.attack.harmful_ratio=0"]))
    assert [c.seed for c in cells] == [4, 5]
    file.write_text(FILE + "sweep:\n")
    assert [c.seed for c in expand(load_experiment(file, ["sweep.seed=[4, 5]"]))] == [4, 5]
    [found] = problems(FILE_AS_DICT | {"sweep": {"align": ["none"]}}, "align.defense=vaccine")
    assert "`align` is swept, which would undo it" in found


@pytest.mark.parametrize(
    ("swept", "values", "override"),
    [
        ("align.defense.vaccine.rho", [0.5, 1], "align.defense=none"),
        ("align.training.max_steps", [5, 6], "align=none"),
        ("finetune.attack.harmful_ratio", [0, 0.1], "finetune.attack={harmful_ratio: 0.25, size: 4}"),
    ],
)
def test_an_override_of_what_holds_a_swept_field_is_refused(swept, values, override):
    sweep = {"seed": [0, 1], swept: values}
    [found] = problems(FILE_AS_DICT | {"sweep": sweep}, override)
    assert f"-o {override}: `{swept}` is swept, which would undo it; override sweep.{swept} or {swept} itself" in found
    experiment = load_experiment(FILE_AS_DICT | {"sweep": sweep}, [f"{swept}={values[0]}", override])
    assert [cell.seed for cell in expand(experiment)] == [0, 1]


VARIANTS = {
    "plain": {},
    "vaccine": {"align.defense": {"vaccine": {"rho": 1.0}}, "topology": "single"},
    "unrepaired": {"repair": "none"},
}


@pytest.mark.parametrize("variants", [VARIANTS, [*VARIANTS.values()], VARIANTS | {"plain": None}])
def test_variants_set_several_fields_at_once_each_from_the_file_itself(file, variants):
    loaded = load_experiment(FILE_AS_DICT | {"variants": variants, "sweep": {"seed": [0, 1]}})
    plain = load_experiment(FILE_AS_DICT)
    cells = expand(loaded)
    assert [cell.seed for cell in cells] == [0, 1] * 3 and cells[0] == plain
    assert cells[2].topology == "single" and cells[2].align.defense == {"vaccine": {"rho": 1.0}}
    assert cells[4].align == plain.align and cells[4].topology == plain.topology and cells[4].repair == {}
    file.write_text(resolved_yaml(loaded))
    assert (
        load_experiment(file) == loaded == load_experiment(canonical(loaded))
        and expand(load_experiment(file)) == cells
    )
    assert [c.seed for c in expand(load_experiment(file, ["seed=7"]))] == [7] * 3


def test_a_variant_fixes_what_it_sets():
    variants = [{}, {"seed": 5, "topology": "single"}]
    cells = expand(
        load_experiment(FILE_AS_DICT | {"variants": variants, "sweep": {"seed": [0, 1], "repair": ["none"]}})
    )
    assert [(c.seed, c.topology, c.repair) for c in cells] == [(0, "double", {}), (1, "double", {}), (5, "single", {})]


def test_overrides_of_variants():
    raw = FILE_AS_DICT | {"variants": VARIANTS}
    for override in ("align.defense=none", "align=none"):
        [found] = problems(raw, override)
        path = override.partition("=")[0]
        assert f"`{path}` is set by variants.vaccine, which would undo it; override variants.vaccine" in found
    assert len(expand(load_experiment(raw, ["variants=[{}]"]))) == 1
    assert expand(load_experiment(raw, ["variants.vaccine={seed: 3}"]))[1].seed == 3
    assert len(expand(load_experiment(raw, ["variants.more={seed: 3}"]))) == 4


def test_the_old_form_of_variants_works_and_one_line_says_the_new(file, caplog):
    old = FILE_AS_DICT | {"sweep": {"variants": [*VARIANTS.values()], "seed": [0, 1]}}
    new = FILE_AS_DICT | {"variants": [*VARIANTS.values()], "sweep": {"seed": [0, 1]}}
    assert load_cells(old) == load_cells(new)
    assert [record.getMessage() for record in caplog.records] == [
        "experiment: sweep.variants is an old form: write `variants: [...]` at the top of the file, outside `sweep`"
    ]
    assert len(expand(load_experiment(FILE_AS_DICT, ["sweep.variants=[{}, {seed: 2}]"]))) == 2
    [found] = problems(old | {"variants": []})
    assert "put both into `variants`" in found


@pytest.mark.parametrize(
    ("variants", "problem"),
    [
        (["vaccine"], 'variants: expected a list or mapping of variants, each {path: value}; 1 is "vaccine"'),
        ({"a": 3}, "variants: expected a list or mapping of variants, each {path: value}; a is 3"),
        (3, "variants: expected a list or mapping of variants, each {path: value}, got 3"),
        ([{}, {"align.defnse": "none"}], "align.defnse: no such field; did you mean `defense`? (with variants.2"),
        ({"a": {"seed.x": 1}}, "variants.a: `seed` is 0: there is no `x` below it (with variants.a"),
        ({"a": {"sweep.seed": [1]}}, "variants.a: `sweep.seed` is no field that a variant sets"),
        ({"a": {"align": "none"}}, "variants.a: `align` and `align.training.max_steps`, which is swept, lie inside"),
    ],
)
def test_bad_variants(variants, problem):
    [found] = problems(FILE_AS_DICT | {"variants": variants, "sweep": {"align.training.max_steps": [5, 6]}})
    assert found.startswith(problem)


def test_values_set_by_path_make_another_experiment():
    plain = load_experiment(FILE_AS_DICT)
    before = canonical(plain)
    changed = plain.with_values({"seed": 3, "align.defense": "vaccine", "align.defense.vaccine.rho": 0.5})
    assert (changed.seed, changed.align.defense, changed.align.training) == (
        3,
        {"vaccine": {"rho": 0.5}},
        plain.align.training,
    )
    assert canonical(plain) == before and plain.with_values({}) == plain
    listed = plain.with_values({"align.defense": ["booster", "vaccine"]})
    assert list(listed.with_values({"seed": 1, "align.defense.vaccine.rho": 2.0}).align.defense) == [
        "booster",
        "vaccine",
    ]
    with pytest.raises(
        InputError, match=r"2 problems:\n  seed: expected an integer .*\n  align.defnse: no such field"
    ):
        plain.with_values({"seed": -1, "align.defnse": "none"})
    with pytest.raises(InputError, match="`seed` is 0: there is no `x` below it"):
        plain.with_values({"seed.x": 1})


def test_experiments_are_not_changed():
    experiment = load_experiment(FILE_AS_DICT)
    for part, name in ((experiment, "seed"), (experiment.align, "training"), (experiment.evaluate, "limit")):
        with pytest.raises(FrozenInstanceError):
            setattr(part, name, 1)


@pytest.mark.parametrize(
    ("sweep", "problem"),
    [
        ({"seed": []}, "sweep.seed: expected a list of values, got none"),
        ({"seed": 3}, "sweep.seed: expected a list of values, got 3"),
        ({"seed": [1, 1.0]}, "sweep.seed: a value appears twice"),
        ({"sed": [1, 2]}, "sed: no such field; did you mean `seed`?"),
        ({"align.defnse": ["none"]}, "align.defnse: no such field; did you mean `defense`?"),
        ({"seed.x": [1]}, "sweep.seed.x: `seed` is 0: there is no `x` below it"),
        ({"align": ["none"], "align.training": [{}]}, "sweep.align.training: lies inside `align`, which is swept too"),
        ({"topology": ["single", "doubel"]}, "topology: expected 'single', 'double' or 'full', got \"doubel\""),
        ({"finetune.attack.harmful_ratio": [0.1, 2]}, "finetune.attack.harmful_ratio: expected a fraction"),
        ({"sweep": [{}]}, "sweep.sweep: a sweep cannot vary itself"),
    ],
)
def test_bad_sweeps(sweep, problem):
    [found] = problems(FILE_AS_DICT | {"sweep": sweep})
    assert found.startswith(problem)


def test_a_bad_cell_says_which_values_it_has():
    [found] = problems(FILE_AS_DICT | {"sweep": {"seed": [0, 1], "finetune.training.max_steps": [100, 30]}})
    assert found.startswith("evaluate.resistance: expected steps below finetune.training.max_steps (30), got [20, 35]")
    assert found.endswith("(with seed=0, finetune.training.max_steps=30)")


# -- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("sed=1", "sed: no such field; did you mean `seed`?"),
        ("finetune.atack.size=1", "finetune.atack: no such field; did you mean `attack`?"),
        ("finetune.attack.ratio=1", "finetune.attack.ratio: no such field; did you mean `harmful_ratio`?"),
        ("evaluate.zzz=1", "evaluate.zzz: no such field; there are: protocol, generator, judges, tasks, capability, "),
        ("data.alignmnt={source: embedded}", "data.alignmnt: no such role; did you mean `alignment`?"),
        ("data.task.nam=x", "data.task.nam: no such field; did you mean `name`?"),
        ("data.task.take=x", 'data.task.take: expected integer, got "x"'),
        ("data.task=x", 'data.task: expected fields, got "x"'),
        ("data.task={name: sentiment}", "data.task.source: missing"),
        ("data.task.test=3", "data.task.test: expected fields or string, got 3"),
        ("seed=1.5", "seed: expected integer, got 1.5"),
        ("seed='1'", 'seed: expected integer, got "1"'),
        ("seed=true", "seed: expected integer, got true"),
        ("seed=-1", "seed: expected an integer from 0 to 4294967295, got -1"),
        ("seed=.nan", "seed: nan (float) cannot be part of a configuration"),
        ("model=", "model: expected string, got nothing"),
        ("model=' '", "model: expected a name, a folder or a Hub id, got "),
        ("topology=doubel", "topology: expected 'single', 'double' or 'full', got \"doubel\"; did you mean `double`?"),
        ("dtype=int8", "dtype: expected 'auto', 'float32' or 'bfloat16', got \"int8\""),
        ("adapter.r=0", "adapter.r: expected at least 1, got 0"),
        ("adapter.lora_dropout=1", "adapter.lora_dropout: expected a fraction below 1, got 1"),
        ("adapter.target_modules=3", "adapter.target_modules: expected list or string, got 3"),
        ("adapter.target_modules=[]", "adapter.target_modules: expected at least one module, got []"),
        ("align=3", "align: expected fields, got 3"),
        ("align.defense=3", "align.defense: expected none, a name, {name: {field: value}} or a list of these, got 3"),
        ("align.defense={booster: 3}", "align.defense: booster: expected fields, got 3"),
        ("align.defense=[booster, booster]", "align.defense: booster appears twice"),
        (
            "finetune.attack.harmful_ratio=1.5",
            "finetune.attack.harmful_ratio: expected a fraction from 0 to 1, got 1.5",
        ),
        (
            "finetune.attack.harmful_ratio=-0.1",
            "finetune.attack.harmful_ratio: expected a fraction from 0 to 1, got -",
        ),
        ("finetune.attack.harmful_ratio=10%", 'finetune.attack.harmful_ratio: expected number, got "10%"'),
        ("finetune.attack.size=0", "finetune.attack.size: expected at least 1 row, got 0"),
        ("finetune={attack: {size: 3}}", "finetune.attack.harmful_ratio: missing"),
        ("evaluate.resistance=[30, 20]", "evaluate.resistance: expected ascending steps from 1 up, got [30, 20]"),
        ("evaluate.resistance=[0, 20]", "evaluate.resistance: expected ascending steps from 1 up, got [0, 20]"),
        ("evaluate.resistance=[20, 50]", "evaluate.resistance: expected steps below finetune.training.max_steps (50)"),
        ("evaluate.limit=0", "evaluate.limit: expected at least 1, got 0"),
        ("evaluate.part=train", "evaluate.part: expected 'test' or 'validation', got \"train\""),
        ("evaluate.generator=3", "evaluate.generator: expected none, a name, {name: {field: value}}"),
        ("repair={antidote: {}, other: {}}", "repair.other: no such method"),
        ("seed", "-o seed: expected path.to.field=value"),
        ("seed.x=1", "-o seed.x=1: `seed` is 0: there is no `x` below it"),
        ("repair.antidote.ratio.x=1", "-o repair.antidote.ratio.x=1: `repair.antidote.ratio` is 0.1"),
        ("data.task.3.take=1", "-o data.task.3.take=1: `data.task` is a list of 1: `3` is no place in it"),
    ],
)
def test_a_mistake_is_named_by_its_path(file, override, problem):
    [found] = problems(file, override)
    assert found.startswith(problem)


def test_all_mistakes_are_named_in_one_error(file):
    file.write_text(
        FILE.replace("model:", "modl:").replace("size: 200", "size: many").replace("name: sentiment", "nme: sentiment")
    )
    assert problems(file, "repair=3", "topology=x") == [
        "model: missing",
        "data.task.nme: no such field; did you mean `name`?",
        "topology: expected 'single', 'double' or 'full', got \"x\"",
        'finetune.attack.size: expected integer, got "many"',
        "repair: expected none, a name, {name: {field: value}} or a list of these, got 3",
        "modl: no such field; did you mean `model`?",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file is empty"),
        ("- a\n- b\n", "expected fields (`model: ...`), got a list"),
        ("model: m\nseed: 0\nseed: 1\n", ":3: not valid YAML: key 'seed' appears twice"),
        ("model: m\ndata:\n  alignment: {source: a, source: b}\n", ":3: not valid YAML: key 'source' appears twice"),
        ("model: m\ndata: [1, 2\nseed: 0\n", ":3: not valid YAML: expected ',' or ']'"),
        ("model: m\n3: x\n", ":2: not valid YAML: key 3 is not text"),
        ("model: !!python/object:os.system x\n", ":1: not valid YAML: could not determine a constructor"),
        ("model: m\nseed: !!int x\n", ":2: not valid YAML: `x` is no int that can be read"),
        ("model: m\nseed: !!float x\n", ":2: not valid YAML: `x` is no float that can be read"),
        ("model: m\nseed: !!float ''\n", ":2: not valid YAML: `` is no float that can be read"),
        ("model: m\nseed: !!bool x\n", ":2: not valid YAML: `x` is no bool that can be read"),
        ("model: m\nseed: !!timestamp x\n", ":2: not valid YAML: `x` is no timestamp that can be read"),
        (f"model: m\nseed: {'9' * 5000}\n", f":2: not valid YAML: `{'9' * 57}...` is no int that can be read"),
        ("model: m\ndata: &x [*x]\n", ":2: not valid YAML: found unconstructable recursive node"),
        ("model: m\ndata: &x {a: {b: *x}}\n", ":2: not valid YAML: found unconstructable recursive node"),
        (f"model: {'[' * 2000}{']' * 2000}\n", "lists or mappings too deep inside each other"),
    ],
)
def test_files_that_are_not_experiments(tmp_path, text, problem):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_experiment(path)
    assert problem in str(caught.value) and str(path) in str(caught.value) and caught.value.exit_code == 3


def test_files_that_cannot_be_read(tmp_path, file):
    with pytest.raises(InputError, match=r"no such file; did you mean `.*experiment\.yaml`"):
        load_experiment(tmp_path / "experimant.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_experiment(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        load_experiment(tmp_path / "binary.yaml")
    for value in ("[a", "!!int x", "&x [*x]"):
        with pytest.raises(InputError, match=r"-o model=.*not valid YAML"):
            load_experiment(file, [f"model={value}"])
    if os.geteuid():  # root reads everything
        file.chmod(0)
        with pytest.raises(InputError, match="cannot be read"):
            load_experiment(file)


def test_a_python_object_is_no_configuration():
    with pytest.raises(InputError, match=r"align\.training\.callbacks: .*cannot be part"):
        load_experiment(FILE_AS_DICT | {"align": {"training": {"callbacks": object()}}})


# -- YAML as people mean it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("4.0e-4", 0.0004),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", float("-inf")),
        ("010", 10),
        ("-3", -3),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("e-3", "e-3"),
        ("true", True),
        ("~", None),
        ("", None),
        ("hs/embedded-v1", "hs/embedded-v1"),
    ],
)
def test_scalars(text, value):
    found = parse_yaml(text, "text")
    assert found == value and type(found) is type(value)


def test_anchors_and_merges():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n"
    assert parse_yaml(text, "text") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


yaml_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Z"]), max_size=8)
    | st.from_regex(r"[-+]?[0-9]{1,2}[:.e_]?[-+]?[0-9]{0,2}", fullmatch=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc1e-.~", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(yaml_values)
def test_what_is_written_is_read_back(value):
    assert parse_yaml(dump_yaml(value), "text") == value


# -- what only the methods can tell ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("align.defense=bostr", "align.defense.bostr: no such method; did you mean `booster`?"),
        ("align.defense.booster.alfa=1", "align.defense.booster.alfa: no such field; did you mean `alpha`?"),
        ("align.defense.booster.lam=x", 'align.defense.booster.lam: expected number, got "x"'),
        ("align.defense={vaccine: {sites: [1]}}", "align.defense.vaccine.sites"),
        ("align.defense={vaccine: {rho: -1}}", "align.defense.vaccine: Vaccine: rho must be a number at least 0"),
        (
            "align.defense={vaccine: {_sites: {}}}",
            "align.defense.vaccine._sites: no such field; did you mean `sites`?",
        ),
        (
            "align.defense.booster.harmful_dataset=x",
            "align.defense.booster.harmful_dataset: comes from data.defender_harmful; leave it out",
        ),
        ("align.training.learning_rat=1", "align.training.learning_rat: no such field; did you mean `learning_rate`?"),
        ("align.training.learning_rate='1e-3'", 'align.training.learning_rate: expected number, got "1e-3"'),
        ("align.training.learning_rate=-1", "align.training.learning_rate: expected at least 0, got -1"),
        ("align.training.max_steps=0", "align.training.max_steps: expected at least 1"),
        ("align.training.max_steps=1.5", "align.training.max_steps: expected integer, got 1.5"),
        (
            "align.training={num_train_epochs: 0}",
            "align.training.num_train_epochs: expected more than 0 where max_steps",
        ),
        ("align.training={num_train_epochs: 0.0, max_steps: -1}", "align.training.num_train_epochs: expected more"),
        ("align.training={num_train_epochs: -1}", "align.training.num_train_epochs: expected at least 0, got -1"),
        (
            "finetune.training.eval_strategy=steps",
            'finetune.training.eval_strategy: expected "no", got "steps": nothing is evaluated during a training',
        ),
        ("finetune.training.eval_on_start=true", "finetune.training.eval_on_start: expected false, got true"),
        (
            "align.training.load_best_model_at_end=true",
            "align.training.load_best_model_at_end: expected false, got true",
        ),
        (
            "align.training.save_strategy=best",
            'align.training.save_strategy: expected "no" or "steps" or "epoch", got "best": nothing is evaluated',
        ),
        ("finetune.training.per_device_train_batch_size=0", "finetune.training.per_device_train_batch_size: expected"),
        ("finetune.training.output_dir=x", "finetune.training.output_dir: not here"),
        ("finetune.training.seed=1", "finetune.training.seed: not here: set `seed` at the top of the file"),
        ("repair=antidot", "repair.antidot: no such method; did you mean `antidote`?"),
        ("repair.antidote.ratio=2", "repair.antidote: "),
        ("repair.antidote.target=update", "repair.antidote.target: no such field; did you mean `targets`?"),
        ("finetune=none", "repair.antidote.targets: `update` takes back part of what the fine-tune changed"),
    ],
)
def test_mistakes_in_methods_and_training(file, override, problem):
    [found] = problems(file, override)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("align.training.push_to_hub=true", "align.training.push_to_hub: not here: a run sends nothing anywhere"),
        ("finetune.training.hub_model_id=a/b", "finetune.training.hub_model_id: not here: a run sends nothing"),
        ("align.training.hub_private_repo=true", "align.training.hub_private_repo: not here"),
        ("align.training.hub_token=hf_x", "align.training.hub_token: not here: a file is recorded"),
        ("align.training.trackio_space_id=a/b", "align.training.trackio_space_id: not here: a run sends nothing"),
        ("align.training.trust_remote_code=true", "align.training.trust_remote_code: not here: code that comes with"),
        (
            "align.training.report_to=wandb",
            'align.training.report_to: expected "none" or "tensorboard", got "wandb": a',
        ),
        ("align.training.report_to=all", "align.training.report_to: expected"),
        ("align.training.report_to=[tensorboard, wandb]", "align.training.report_to: expected"),
        ("align.training.model_init_kwargs={trust_remote_code: true}", "align.training.model_init_kwargs: not here"),
        ("align.training.dataset_kwargs={skip_prepare_dataset: true}", "align.training.dataset_kwargs: not here"),
        ("align.training.deepspeed={wandb: {enabled: true}}", "align.training.deepspeed: not here: how processes"),
        (
            "align.training.lr_scheduler_kwargs={a: {push_to_hub: true}}",
            "align.training.lr_scheduler_kwargs.a.push_to",
        ),
        (
            'align.training.gradient_checkpointing_kwargs=\'{"report_to": "wandb"}\'',
            "align.training.gradient_checkpointing_kwargs.report_to: not here",
        ),
        (
            "evaluate.generator={vllm: {options: {trust_remote_code: true}}}",
            "evaluate.generator.vllm.options.trust_remote_code: not here",
        ),
        ("evaluate.generator={vllm: {options: {hf_token: t}}}", "evaluate.generator.vllm.options.hf_token: not here"),
        ("align.training.save_only_model=true", "align.training.save_only_model: expected false, got true: otherwise"),
        ("align.training.ignore_data_skip=true", "align.training.ignore_data_skip: expected false, got true"),
        ("align.training.auto_find_batch_size=true", "align.training.auto_find_batch_size: expected false"),
        (
            "finetune.training.train_sampling_strategy=group_by_length",
            'finetune.training.train_sampling_strategy: expected "random" or "sequential", got "group_by_length": o',
        ),
        ("align.training.train_sampling_strategy=batch_rebalance", "align.training.train_sampling_strategy: expected"),
        ("align.training.dataloader_in_order=false", "align.training.dataloader_in_order: expected true"),
        ("align.training.enable_jit_checkpoint=true", "align.training.enable_jit_checkpoint: not here"),
        (
            "align.training.optim=galore_adamw_layerwise",
            'align.training.optim: "galore_adamw_layerwise" keeps no state',
        ),
        ("align.training.optim=lomo", 'align.training.optim: "lomo" keeps no state'),
        (
            "align.training.accelerator_config={use_seedable_sampler: false}",
            "align.training.accelerator_config.use_seedable_sampler: expected true, got false: otherwise a training",
        ),
        ("align.training.accelerator_config={split_batches: true}", "align.training.accelerator_config.split_batches"),
        ("align.training.accelerator_config=file.json", "align.training.accelerator_config: expected its fields"),
        ("sweep={align.training.push_to_hub: [false, true]}", "align.training.push_to_hub: not here"),
        ("variants=[{}, {align.training.report_to: wandb}]", "align.training.report_to: expected"),
    ],
)
def test_what_no_file_may_ask_for(file, override, problem):
    """Refused as the file is read, so by every command, before torch is loaded; by `with_defaults` without one."""
    with pytest.raises(InputError) as error:
        load_experiment(file, [override])
    assert problem in str(error.value) and "hf_x" not in str(error.value).partition("hub_token")[2]
    if not override.startswith(("sweep", "variants")) and "evaluate" not in override:
        experiment = load_experiment(file)
        stage, _, rest = override.partition(".training.")
        name, _, value = rest.partition("=")
        getattr(experiment, stage).training[name] = parse_yaml(value, "value", lines=False)
        with pytest.raises(InputError, match=re.escape(problem)):
            with_defaults(experiment)


def test_local_files_and_exact_resumption_are_allowed(file):
    fields = "report_to: tensorboard, train_sampling_strategy: sequential, save_strategy: 'no', save_only_model: false"
    load_experiment(
        file, [f"align.training={{max_steps: 50, {fields}, accelerator_config: {{split_batches: false}}}}"]
    )
    load_experiment(file, ["evaluate.generator={vllm: {options: {trust_remote_code: false}}}"])


def test_values_that_say_what_is_done_anyway(file):
    fields = "eval_strategy: no, eval_on_start: false, load_best_model_at_end: false, save_strategy: epoch"
    with_defaults(load_experiment(file, [f"finetune.training={{max_steps: 50, num_train_epochs: 0, {fields}}}"]))


def test_adapters_cannot_be_repaired_where_there_are_none(file):
    adapters = "repair.antidote.targets=adapters"
    assert "topology: full trains none" in problems(file, adapters, "topology=full")[0]
    assert "merged under topology: double" in problems(file, adapters, "finetune=none")[0]
    with_defaults(load_experiment(file, [adapters, "finetune=none", "topology=single"]))
    with_defaults(load_experiment(file, [adapters]))


def test_validation_fills_in_the_defaults_that_will_act(file):
    asked = load_experiment(file, ["align.defense=[vaccine, {booster: {lam: 3}}]"])
    before = canonical(asked)
    experiment = with_defaults(asked)
    assert canonical(asked) == before and with_defaults(experiment) == experiment
    assert experiment.align.defense == {
        "vaccine": {"rho": 2.0, "sites": "attention", "every": 1},
        "booster": {"alpha": 0.1, "lam": 3, "every": 1},
    }
    assert experiment.repair["antidote"]["score"] == "wanda"


def test_mistakes_of_all_stages_are_named_in_one_error(file):
    found = problems(file, "align.defense=bostr", "finetune.training.max_step=3", "repair.antidote.rato=3")
    assert [line.split(":")[0] for line in found] == [
        "align.defense.bostr",
        "finetune.training.max_step",
        "repair.antidote.rato",
    ]
