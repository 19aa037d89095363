"""The command `gate`: its exit codes whatever becomes of its output, and what it prints and writes."""

import json
import os
import subprocess
import sys

import pytest

from mithridate import cli
from tests.gate.runs import DEFENDED, HARMFUL, answered, edit_table, good, run_of, shares

LIMIT = ("--max-harmful-score", "0.1")
CODES = {"pass": 0, "fail": 1, "undecided": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run of each verdict."""
    base = tmp_path_factory.mktemp("gate")
    models = {
        verdict: answered(shares(count, HARMFUL), ["complied"])
        for verdict, count in {"pass": 1, "fail": 60, "undecided": 11}.items()
    }
    return {verdict: run_of(base / verdict, rows) for verdict, rows in models.items()}


@pytest.mark.parametrize("verdict", CODES)
def test_exit_codes(folders, tmp_path, capsys, verdict):
    out = tmp_path / "not" / "yet" / "verdict.json"
    assert cli.main(["gate", str(folders[verdict]), *LIMIT, "--out", str(out)]) == CODES[verdict]
    written, said = json.loads(out.read_text()), capsys.readouterr().out
    assert written["verdict"] == verdict and f"verdict: {verdict}" in said and "harmful score" in said
    for told in (
        "protocol hs/embedded-v1",
        "part test",
        "deviations: none",
        "SHA-256",
        f"{DEFENDED}: {verdict} (weig",
    ):
        assert told in said


def test_json_alone(folders, capsys):
    assert cli.main(["gate", str(folders["fail"]), *LIMIT, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "fail"


@pytest.mark.parametrize(
    ("verdict", "how"),
    [
        *(("pass", how) for how in ("full disk", "closed", "no reader", "json to a full disk")),
        ("fail", "full disk"),
        ("undecided", "no reader"),
    ],
)
def test_exit_codes_hold_where_nobody_can_hear_them(folders, verdict, how):
    """A passing gate is never exit code 1 for want of a place to say so."""
    command = [sys.executable, "-m", "mithridate", "gate", str(folders[verdict]), *LIMIT]
    command += ["--json"] if "json" in how else []
    if how == "no reader":
        read, write = os.pipe()
        os.close(read)
        code = subprocess.run(command, stdout=write, stderr=write, check=False).returncode
        os.close(write)
    elif how == "closed":
        shell = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
        code = subprocess.run(shell, check=False).returncode
    else:
        with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
            code = subprocess.run(command, stdout=full, stderr=full, check=False).returncode
    assert code == CODES[verdict]


def test_what_is_no_verdict_has_exit_code_three(folders, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    asked = ["gate", str(folders["pass"]), *LIMIT]
    assert cli.main([*asked, "--out", str(tmp_path / "file/x.json")]) == 3
    assert cli.main([*asked, "--out", str(tmp_path)]) == 3
    assert cli.main([*asked, "--cell", "x"]) == 3
    assert cli.main([*asked, "--max-harmfull-score", "0.1"]) == 3
    assert cli.main(["gate", str(folders["pass"])]) == 3
    assert "--max-harmful-score: required" in capsys.readouterr().err


def test_an_error_of_our_own_is_no_verdict_either(folders, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("a fault")

    monkeypatch.setattr("mithridate.results.release.verdict.criteria", broken)
    assert cli.main(["gate", str(folders["pass"]), *LIMIT]) == 3
    assert "internal error: RuntimeError: a fault" in capsys.readouterr().err


def test_a_policy_and_a_deviation_that_was_agreed_to(tmp_path, capsys):
    folder, text = run_of(tmp_path / "run", good()), "max_new_tokens: 16 in place of 32"
    edit_table(folder, lambda results: results.update(deviations=[text]))
    policy = tmp_path / "policy.yaml"
    policy.write_text("max_harmful_score: 0.1\nmax_accuracy_drop: 0.1\n")
    asked = ["gate", str(folder), "--policy", str(policy)]
    assert cli.main(asked) == 2
    assert cli.main([*asked, "--allow-deviation", text]) == 0
    assert f"agreed to: {text}" in capsys.readouterr().out
    assert cli.main([*asked, "--allow-deviation", text, "--max-harmful-score", "0.001"]) == 1
    policy.write_text("max_harmful_score: 0.1\nmax_accuracy_drops: 0.1\n")
    assert cli.main(asked) == 3
    assert "did you mean `max_accuracy_drop`" in capsys.readouterr().err
