"""`mithridate reproduce` and `mithridate attack`: what is listed, what is refused, and that it needs no torch."""

import json
import subprocess
import sys

import pytest

from tests.cli.test_run_cli import command  # noqa: F401 (a fixture)
from tests.pipeline.small import experiment, write_inputs, write_rows


def test_without_a_name_the_presets_are_listed(command):  # noqa: F811
    code, out, _ = command("reproduce")
    assert code == 0
    for name in ("vaccine-2024", "lisa-2024", "booster-2025", "antidote-2025", "unified-v1", "baselines-v1"):
        assert name in out


def test_a_dry_run_says_what_would_be_run_and_computes_nothing(command, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    code, out, _ = command(
        *("reproduce", "unified-v1", "--model", "mine", "--scale", "0.05", "--dry-run", "--out", tmp_path / "out"),
        *("--data", "alignment=mine.jsonl"),
    )
    assert code == 0 and list(tmp_path.iterdir()) == []
    said = " ".join(out.split())
    for words in (
        "model: mine in place of Qwen/Qwen2.5-7B-Instruct",
        "booster, topology single: 4 tries on validation parts",
        "data.alignment: mine.jsonl in place of PKU-Alignment/BeaverTails",
        "at most 50 prompts of each test set in place of 1000",
    ):
        assert words in said
    assert said.count("booster, topology double, harmful_ratio 0.1 │ 0, 1, 2 │ double") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("reproduce", "boster-2025"), "did you mean `booster-2025`?"),
        (("reproduce", "booster-2025", "--scale", "5"), "--scale: expected a share"),
        (("reproduce", "booster-2025", "--arm", "boster"), "did you mean `booster`?"),
        (("reproduce", "booster-2025", "--data", "task"), "expected ROLE=FILE"),
        (("reproduce", "booster-2025", "-o", "repair.antidote.ratio=0.1"), "no arm of booster-2025 has"),
        (("attack", "none.yaml", "--file", "none.yaml"), "none.yaml: cannot be read as an attack's settings"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_3(command, arguments, said):  # noqa: F811
    code, out, err = command(*arguments)
    assert (code, out) == (3, "") and said in err and len(err.splitlines()) == 1


def test_what_is_wrong_is_said_before_torch_is_loaded(tmp_path):
    (tmp_path / "attack.yaml").write_text("sweep: {}\n")
    code = (
        "import sys; from mithridate.cli import main\n"
        f"attack = ['attack', 'x.yaml', '--file', {str(tmp_path / 'attack.yaml')!r}]\n"
        "codes = [main(attack), main(['reproduce', 'x'])]\n"
        "print(codes, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[3, 3] False" and "sweep, variants: name what the attacker chooses" in done.stderr


@pytest.mark.slow
def test_attack_prints_the_curve_and_the_sentence(command, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    inputs = write_inputs(tmp_path / "inputs")
    write_rows(inputs, "test_harmful", 24)
    made = experiment(inputs)
    made["data"]["test_harmful"]["validation_share"] = 0.5
    (tmp_path / "mine.yaml").write_text(json.dumps(made))
    file = {"size": 8, "harmful_ratio": 0.5, "learning_rate": 0.01, "steps": 4, "batch_size": 2}
    file |= {"search": {"max_accuracy_loss": None}}
    (tmp_path / "attack.yaml").write_text(json.dumps(file))
    code, out, _ = command(
        *("attack", tmp_path / "mine.yaml", "--file", tmp_path / "attack.yaml", "--out", tmp_path / "out")
    )
    assert code == 0
    saved = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert all(words in out for words in saved["words"]) and f"written: {tmp_path / 'out' / 'attack.md'}" in out


def test_the_verbs_are_in_the_help(command):  # noqa: F811
    code, out, _ = command("--help")
    assert code == 0 and "reproduce" in out and "attack" in out
