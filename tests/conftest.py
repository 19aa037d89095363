"""What every test stands on: no network, one thread a worker, and stores and caches that vanish with the session."""

import gc
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

# Read when the libraries are first imported, so before any test module is. Child processes inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # torch takes its thread count from here; xdist's workers share the cores
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("COLUMNS", None)  # tables as into a file, however wide the screen that the tests are started from

import pytest
from hypothesis import settings

# The same commit gives the same verdict, on a busy machine too.
settings.register_profile("mithridate", deadline=None, derandomize=True)
settings.load_profile("mithridate")


# Files of minutes, the longest first: begun last, one of them would keep one worker busy while the others idle.
LONG = (
    "benchmarks/test_gpu.py",
    "benchmarks/test_scripts.py",
    "pipeline/test_methods.py",
    "conformance/test_every_defense.py",
    "pipeline/test_demo.py",
    "distributed/test_gloo.py",
    "estimate/test_estimate.py",
    "benchmarks/test_record.py",
)

_CACHE = os.environ.get("MITHRIDATE_CACHE")


@pytest.fixture(scope="session", autouse=True)
def _private_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's own store or cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MITHRIDATE_STORE", str(tmp_path_factory.mktemp("store")))
        patch.setenv("MITHRIDATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _messages_as_at_the_start() -> None:
    """The command sends our messages to stderr and no further, and an earlier test may have called it in-process."""
    ours = logging.getLogger("mithridate")
    ours.handlers[:], ours.propagate = [], True
    ours.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def users_cache(_private_folders: None) -> Iterator[None]:
    """For slow tests with the embedded model: its conversion is read from, or put into, the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        if _CACHE is None:
            patch.delenv("MITHRIDATE_CACHE")
        else:
            patch.setenv("MITHRIDATE_CACHE", _CACHE)
        yield


def pytest_terminal_summary(terminalreporter) -> None:
    """Counts the skipped tests, none included; `-ra` in pyproject.toml prints each with its reason."""
    count = len(terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"Skipped tests: {count}" + (" (reasons above)" if count else ""))


# -- evidence for docs/support_matrix.md ------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--evidence", help="write what the tests marked `shows` show, and their outcomes, to this file")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; and what a marked test shows travels with its report, also from a worker process."""
    tests = Path(__file__).parent
    names = {item.path: item.path.relative_to(tests).as_posix() for item in items if item.path.is_relative_to(tests)}
    items.sort(key=lambda item: LONG.index(names[item.path]) if names.get(item.path) in LONG else len(LONG))
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        for mark in item.iter_markers("shows"):
            setup, result = mark.args
            setup = setup or parameters["setup"]
            methods = mark.kwargs.get("methods") or [str(parameters["name"]).split(",")[0]]
            for method in methods:
                cell = {"setup": setup, "method": method, "result": result, "note": mark.kwargs.get("note", "")}
                item.user_properties.append(("shows", cell | {"test": item.nodeid.rpartition("::")[2].split("[")[0]}))


_EVIDENCE: list[dict[str, str]] = []


def pytest_collection_finish(session: pytest.Session) -> None:
    # Every training collects garbage, through all that the imports and thousands of tests left: half a second each.
    gc.freeze()
    if session.config.option.collectonly:
        _EVIDENCE.extend(
            v | {"outcome": "not run"} for i in session.items for k, v in i.user_properties if k == "shows"
        )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or not report.passed:
        _EVIDENCE.extend(v | {"outcome": report.outcome} for k, v in report.user_properties if k == "shows")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.option.evidence and not hasattr(session.config, "workerinput"):
        Path(session.config.option.evidence).write_text(json.dumps(_EVIDENCE, indent=1), encoding="utf-8")
