"""The command: its verbs, its exit codes, and one clear message for whatever goes wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import typer

import mithridate
from mithridate import cli
from mithridate.cli.shared import say
from mithridate.errors import InputError, MithridateError, UnsupportedSetup

VERBS = [
    "align",
    "finetune",
    "repair",
    "evaluate",
    "run",
    "demo",
    "report",
    "export",
    "compare",
    "doctor",
    "methods",
    "schema",
    "cite",
]
EXPERIMENT = "model: m\ndata: {}\nseed: 3\n"


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs the command in this process: (exit code, stdout, stderr). What it sets for its process is put back."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    with warnings.catch_warnings():
        yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT)
    return path


class FakeRun:
    def __init__(self, folder: Path, cells=()):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.report, self.results = folder, folder / "report.html", {"cells": list(cells)}
        (folder / "results.json").write_text(json.dumps(self.results))
        self.report.touch()


@pytest.fixture
def runner(monkeypatch, tmp_path):
    """Stands in for the runner: notes how it was called; `runner.raises` is what happens instead."""
    fake = types.ModuleType("mithridate.pipeline.runner")
    fake.calls, fake.raises = [], None

    def run(experiment, overrides=(), out=None, until=None, progress=True, executor=None):
        fake.calls.append((experiment, list(overrides), out, until))
        if fake.raises is not None:
            raise fake.raises
        return FakeRun(Path(out or tmp_path / "run"))

    def export_cell(folder, cell, out, merged):
        fake.calls.append((folder, cell, out, merged))
        return out

    fake.run = run
    export = types.ModuleType("mithridate.pipeline.cell_export")
    export.export_cell = export_cell
    for module in (fake, export):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(module.__name__, module, raising=False)
    return fake


# -- verbs -------------------------------------------------------------------------------------------------


def test_without_arguments_the_command_is_help(command):
    assert command() == command("--help")


def test_help_names_every_verb_and_each_has_its_own(command, monkeypatch):
    """At 80 columns no sentence is shortened in the list, and no option's name is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = command("--help")
    assert (code, err) == (0, "") and all(f" {verb} " in out for verb in VERBS)
    whole = typer.main.get_command(cli.app)
    told = " ".join(out.split())
    assert all(" ".join(one.help.split("\n\n")[0].split()) in told for one in whole.commands.values() if one.help)
    for verb, one in whole.commands.items():
        code, out, err = command(verb, "--help")
        assert (code, err) == (0, "") and f"mithridate {verb}" in out and max(map(len, out.splitlines())) <= 80
        assert "bool" not in out  # a flag takes no value
        names = [name for option in one.params for name in (*option.opts, *option.secondary_opts) if name[0] == "-"]
        assert set(names) <= set(re.findall(r"--?[\w-]+", out))


@pytest.mark.parametrize(
    ("verb", "until"),
    [("run", None), ("align", "align"), ("finetune", "finetune"), ("repair", "repair"), ("evaluate", "evaluate")],
)
def test_the_stage_verbs(command, runner, file, tmp_path, verb, until):
    code, out, _ = command(
        verb, file, "-o", "seed=4", "--override", "topology=single", "--dtype", "float32", "--out", tmp_path / "o"
    )
    assert code == 0
    assert runner.calls == [(file, ["seed=4", "topology=single", "dtype=float32"], tmp_path / "o", until)]
    assert f"report: {tmp_path / 'o' / 'report.html'}" in out and f"run:    {tmp_path / 'o'}" in out


def test_the_demo(command, monkeypatch, tmp_path):
    calls = []
    fake = types.ModuleType("mithridate.studies.demo")
    fake.run_demo = lambda out, full, replace, show: calls.append((out, full)) or FakeRun(tmp_path / "demo")
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    assert command("demo")[0] == 0 and command("demo", "--full", "--out", tmp_path)[0] == 0
    assert calls == [(None, False), (tmp_path, True)]


def test_the_export(command, runner, tmp_path):
    run = FakeRun(tmp_path / "run").folder
    assert command("export", run, "--cell", "a", "--out", tmp_path / "merged")[0] == 0
    assert command("export", run, "--cell", "a", "--out", tmp_path / "adapter", "--adapter")[0] == 0
    assert runner.calls == [(run, "a", tmp_path / "merged", True), (run, "a", tmp_path / "adapter", False)]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    code, _, err = command("export", run, "--cell", "a", "--out", tmp_path / "full")
    assert code == 3 and "not an empty folder" in err and len(runner.calls) == 2


@pytest.mark.parametrize("arguments", [["report"], ["export", "--cell", "a", "--out", "x"]])
def test_what_is_not_a_run_is_refused(command, tmp_path, arguments):
    code, _, err = command(arguments[0], tmp_path, *arguments[1:])
    assert code == 3 and "not a run folder" in err


def test_methods_says_what_each_costs_and_where_it_is_from(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # each cell in one line
    code, out, _ = command("methods")
    assert code == 0
    text = " ".join(out.split())
    for name in ("booster", "vaccine", "lisa", "antidote"):
        assert f" {name} " in text
    assert "post-fine-tuning" in text and "2408.09600" in text and "2 passes per step" in text
    assert "rho=0.0" in text and "1 copy of the trained" in text and "exact" in text


def test_methods_tells_all_of_one(command):
    code, out, _ = command("methods", "antidote")
    text = " ".join(out.split())
    assert code == 0 and "calibration_harmful" in text and "random-mask" in text and "@inproceedings{antidote," in text
    assert "field ratio │ 0.2" in text and "booster" not in text
    code, _, err = command("methods", "antidoet")
    assert code == 3 and "no such method; did you mean `antidote`?" in err


def test_every_method_can_be_cited(command):
    from mithridate.methods.index import index

    found = {one["name"]: command("cite", one["name"]) for one in index()}
    assert len(found) >= 4 and {code for code, _, _ in found.values()} == {0}
    assert all(re.match(r"@\w+\{[\w:-]+,\n(.*\n)+\}\n$", out) for _, out, _ in found.values())


def test_cite(command):
    code, out, _ = command("cite", "lisa", "antidote", "lisa")
    assert code == 0 and out.count("@inproceedings{") == 2 and out.index("{lisa,") < out.index("{antidote,")
    code, out, _ = command("cite")
    assert code == 0 and out.startswith("@software{mithridate,")
    code, out, err = command("cite", "lsia")
    assert code == 3 and out == "" and "did you mean `lisa`" in err


def test_the_shell_is_told_what_may_follow(monkeypatch):
    monkeypatch.setenv("_MITHRIDATE_COMPLETE", "complete_bash")
    for words, number, told in (
        ("mithridate re", "1", {"repair", "report", "reproduce"}),
        ("mithridate report --re", "2", {"--redact", "--replace"}),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", number)
        done = real()
        assert (done.returncode, set(done.stdout.split())) == (0, told), done.stderr


def test_the_version(command):
    assert command("--version") == (0, f"mithridate {mithridate.__version__}\n", "")


def test_doctor_shows_versions_machine_store_and_methods(command, monkeypatch, tmp_path):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "not" / "yet"))
    code, out, _ = command("doctor", "--load")
    assert code == 0
    for shown in ("torch", "trl", "cpu", "gpu", "bfloat16", "not/yet", "GB free", "booster", "antidote", "works"):
        assert shown in out


def test_doctor_alone_tells_versions_and_machine_without_loading_anything(monkeypatch, tmp_path):
    """Loading takes seconds: that is `--load`."""
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "not" / "yet"))
    done = real(code="from mithridate import cli; import sys; cli.main(['doctor']); print('torch' in sys.modules)")
    for shown in ("torch", "trl", "cpu", "gpu", "not/yet", "GB free", "mithridate doctor --load"):
        assert shown in done.stdout
    assert "works" not in done.stdout and done.stdout.splitlines()[-1] == "False"


def test_doctor_finds_what_is_too_old(command, monkeypatch):
    from importlib import metadata

    monkeypatch.setattr(metadata, "requires", lambda _: ["typer>=999", "rich>=13", 'nosuchthing>=1; extra == "x"'])
    code, out, _ = command("doctor")
    assert code == 1 and "needs >=999" in out and "[x]" in out


# -- exit codes and messages ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rn"], "No such command 'rn'"),
        (["run"], "Missing argument"),
        (["run", "--ot", "x"], "No such option: --ot"),
        (["run", "a.yaml", "b.yaml"], "unexpected extra argument"),
        (["export", "x", "--out", "y"], "Missing option '--cell'"),
        (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_wrong_usage_is_bad_input(command, arguments, said):
    code, out, err = command(*arguments)
    assert (code, out) == (3, "") and err.startswith("error: ") and said in err and len(err.splitlines()) == 1


def test_a_bad_field_is_said_before_the_runner_is_loaded(command, runner, file):
    code, _, err = command("run", file, "-o", "sed=1", "--dtype", "int8")
    assert code == 3 and "sed: no such field; did you mean `seed`?" in err and "dtype: expected" in err
    assert runner.calls == []


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("row 3: empty"), 3, "error: row 3: empty"),
        (UnsupportedSetup("no.", "yes."), 3, "error: no. Remedy: yes."),
        (MithridateError("step 7: loss is nan"), 1, "error: step 7: loss is nan"),
        (OSError(28, "No space left on device", "runs/x"), 1, "error: runs/x: No space left on device"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (TypeError("a\nb"), 1, "error: internal error: TypeError: a\nb (run it with --debug for the traceback)"),
    ],
)
def test_exit_codes(command, runner, file, error, code, said):
    runner.raises = error
    found, out, err = command("run", file)
    assert (found, out) == (code, "") and err.startswith(said) and "Traceback" not in err
    for arguments in (["--debug", "run", file], ["run", file, "--debug"]):
        found, _, err = command(*arguments)
        assert found == code and "Traceback" in err and type(error).__name__ in err
        assert "--debug" not in err.splitlines()[-1]


# -- the real command ------------------------------------------------------------------------------------


def real(*arguments, code=None):
    start = ["-c", code] if code else ["-m", "mithridate"]
    return subprocess.run([sys.executable, *start, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_the_installed_command_and_the_module_are_one(tmp_path):
    script = Path(sys.executable).with_name("mithridate")
    file = tmp_path / "x.yaml"  # in an empty folder, so that no other file is proposed
    for result in (real("run", file), subprocess.run([script, "run", file], capture_output=True, text=True)):
        assert result.returncode == 3 and result.stderr == f"error: {file}: no such file\n" and result.stdout == ""


def test_what_tells_facts_and_bad_files_need_no_torch_and_no_rules(file):
    slow = "('torch', 'mithridate.rules.lexicon')"  # whose patterns take tenths of a second to compile
    code = "import sys; from mithridate.cli import main; main(sys.argv[1:]); "
    code += f"sys.exit(any(name in sys.modules for name in {slow}))"
    for arguments in (["--help"], ["methods"], ["run", file, "-o", "sed=1"], ["report", "nowhere"]):
        assert real(*arguments, code=code).returncode == 0


SLEEPER = """
import sys, time, types
runner = types.ModuleType("mithridate.pipeline.runner")
def run(*_, **__):
    print("running", flush=True)
    time.sleep(60)
runner.run = run
import mithridate.pipeline
sys.modules[runner.__name__] = mithridate.pipeline.runner = runner
from mithridate.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_signals_interrupt(file, sent):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, "run", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # started in the background, a shell would have had it ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "running\n"
    os.kill(process.pid, sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "error: interrupted; finished stages are kept, and the next run continues from them\n"


def test_export_pushes_where_that_is_asked_and_privately(command, runner, tmp_path, monkeypatch):
    pushed, folder = [], FakeRun(tmp_path / "run").folder
    monkeypatch.setattr(
        "mithridate.cli.results.upload",
        lambda where, *given: pushed.append((where.name, *given)) or "https://hub/me/mine",
    )
    asked = ["export", str(folder), "--cell", "c", "--push", "me/mine"]
    code, out, _ = command(*asked)
    assert (code, out) == (0, "on the Hub: https://hub/me/mine\n")
    code, out, _ = command(*asked, "--out", str(tmp_path / "model"), "--public")
    assert code == 0 and f"model: {tmp_path / 'model'}" in out and "on the Hub" in out
    assert pushed == [("model", "me/mine", False, False), ("model", "me/mine", True, False)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "--out: needed"),
        (["--out", "m", "--public"], "--public: is about --push REPO"),
        (["--push", "mine"], "--push mine: expected organisation/name"),
        (["--push", "me/mine", "--inspect", "--out", "log.json"], "--push: puts a model on the Hub"),
    ],
)
def test_exports_that_cannot_be(command, runner, tmp_path, given, said):
    folder = FakeRun(tmp_path / "run").folder
    code, _, err = command("export", str(folder), "--cell", "c", *given)
    assert code == 3 and said in err and not runner.calls


def test_a_report_is_not_written_over_what_is_none(command, tmp_path):
    folder = FakeRun(tmp_path / "run").folder
    (tmp_path / "notes.html").write_text("my own page")
    code, _, err = command("report", str(folder), "--out", str(tmp_path / "notes.html"))
    assert code == 3 and "not a report page" in err and "--replace" in err
    assert (tmp_path / "notes.html").read_text() == "my own page"


def test_what_was_given_alone_reaches_the_runner(command, runner, file, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(runner, "run", lambda *_, **named: given.append(named) or FakeRun(tmp_path / "run"))
    options = ["--replace", "--report-to", "wandb", "--report-to", "mlflow", "--trust-remote-code"]
    for verb in ("run", "align"):
        assert command(verb, str(file), *options)[0] == 0
    asked = {"replace": True, "report_to": ("wandb", "mlflow"), "trust_remote_code": True}
    assert all(one.items() >= asked.items() for one in given) and len(given) == 2


# -- at 80 columns ---------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch, capsys):
    """Prints a table on a screen of 80 columns: its lines."""
    from mithridate.cli.shared import new_table, print_table

    def printed(titles, rows, keys=1):
        monkeypatch.setenv("COLUMNS", "80")
        table = new_table(*titles)
        for row in rows:
            table.add_row(*row)
        print_table(table, keys)
        return capsys.readouterr().out.splitlines()

    return printed


def test_text_is_folded_between_words_on_a_screen_only(monkeypatch, capsys):
    text, path = "  " + "word " * 30 + "end", "/a" * 60
    say(f"{text}\n{path}")
    assert capsys.readouterr().out == f"{text}\n{path}\n"
    monkeypatch.setenv("COLUMNS", "40")
    say(f"{text}\n{path}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == path and max(map(len, lines[:-1])) <= 40 and len(lines) > 4
    assert lines[0].startswith("  word") and all(line.startswith("    word") for line in lines[1:-2])
    assert " ".join(lines[:-1]).split() == text.split()


def test_a_table_that_fits_is_as_it_is(narrow):
    lines = narrow(("name", "value"), [("a", "1")])
    assert len(lines) == 5 and lines[3].split() == ["│", "a", "│", "1", "│"]


def test_no_word_is_broken_where_the_words_fit(narrow):
    name, words = "vaccine-sft-none-double-0.25-s0", "0 of 8 is 0.000, limit 0.2; " * 5
    lines = narrow(("model", "result", "reason"), [(name, "undecided", words)])
    assert max(map(len, lines)) == 80 and sum(name in line for line in lines) == 1
    assert " ".join(re.sub(f"[│┃]|{name}|undecided", " ", "\n".join(lines[3:-1])).split()) == words.strip()


def test_a_table_that_does_not_fit_is_printed_in_pieces_with_its_keys(narrow):
    from mithridate.pipeline.planning import TITLES

    rows = [("align", name, *(f"{number}.25" for number in range(len(TITLES) - 2))) for name in ("plain", "booster")]
    lines = narrow(TITLES, rows, keys=2)
    assert max(map(len, lines)) <= 80
    shown = [line.split() for line in lines]
    for name in ("plain", "booster"):
        mine = [line for line in shown if line[:2] == ["align", name]]
        assert len(mine) > 1 and [value for line in mine for value in line[2:]] == list(rows[0][2:])
    said = " ".join(word for line in shown for word in line)
    assert all(word in said.split() for title in TITLES for word in title.split())


def test_a_rate_and_its_interval_stay_in_one_line(narrow):
    rate, other = "97.3% [94.7, 98.7]", "0.94 [0.88, 0.97]"
    titles = ("judges", "what", "answers", "agree", "Cohen's kappa", "differ", "unscored")
    lines = narrow(titles, [("rules-v3 and coherence", "incoherent", "336", rate, other, "9", "rules-v3 12")], keys=2)
    assert max(len(line.rstrip()) for line in lines) <= 80
    for whole in (rate, other, "Cohen's kappa", "differ", "rules-v3 12", "336"):
        assert any(whole in line for line in lines), whole


def test_a_title_gives_way_before_a_cell_is_broken(narrow):
    name = "sft, topology single, harmful_ratio 0.05"
    lines = narrow(("case", "seed", "topology", "rows of the attack"), [(name, "42", "single", "100")])
    assert any(name in line for line in lines) and max(map(len, lines)) <= 80


def test_a_word_longer_than_any_column_is_broken(narrow):
    path = "/a" * 60
    lines = narrow(("model", "reason"), [("m", path)])
    assert max(map(len, lines)) <= 80 and "".join(re.findall(r"/a|/|a", "".join(lines[3:-1]))) == path
