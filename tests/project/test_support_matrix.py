"""The support matrix in the repository is the one that the marked tests declare, and its writer sees what is amiss."""

import pytest

from mithridate.methods import by_name
from tests import support_matrix
from tests.support_matrix import PAGE, REPAIRS, SETUPS, TABLES, collected, gpu_table, page, table


@pytest.mark.slow
def test_the_page_is_what_the_marked_tests_declare():
    """`python -m tests.support_matrix` writes it anew, from a run in which they pass."""
    assert PAGE.read_text(encoding="utf-8") == page(collected("--collect-only"))


def cell(**changes):
    return {
        "method": "lisa",
        "setup": "ddp",
        "result": "exact",
        "note": "",
        "test": "test_x",
        "outcome": "passed",
    } | changes


def test_a_cell_without_a_test_and_a_contradiction_are_errors():
    assert "| lisa" not in table([cell()], {"ddp": "DDP"}, ("lisa",))
    assert "| DDP | **exact** | `test_x` |" in table([cell()], {"ddp": "DDP"}, ("lisa",))
    with pytest.raises(ValueError, match="lisa, ddp: shown as nothing"):
        table([], {"ddp": "DDP"}, ("lisa",))
    with pytest.raises(ValueError, match="shown as"):
        table([cell(), cell(result="refused")], {"ddp": "DDP"}, ("lisa",))
    with pytest.raises(ValueError, match="in no table"):
        page([cell(setup="dpd")])


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_a_marked_test_that_does_not_pass_leaves_the_page_as_it_was(outcome, monkeypatch, tmp_path):
    monkeypatch.setattr(support_matrix, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(support_matrix, "collected", lambda: [cell(outcome=outcome)])
    with pytest.raises(SystemExit, match="test_x"):
        support_matrix.main()
    assert not (tmp_path / "page.md").exists()


def test_gpu_rows_come_from_a_measurement_or_say_that_there_is_none():
    assert gpu_table(None).endswith("Not yet measured.\n")
    figures = {"bf16": {"lisa": {"error": 2e-3, "plain": 2e-3, "exact": True}}, "qlora": {"reason": "no bitsandbytes"}}
    measured = {"tiny": False, "device": {"gpu": "X"}, "sections": {"exactness": {"figures": figures}}}
    assert "| bf16 | lisa | 2.0e-03 | exact |" in gpu_table(measured)
    assert "not measured: no bitsandbytes" in gpu_table(measured)
    figures["bf16"]["vaccine"] = {"reason": "failed: ValueError: why"}  # one method alone
    assert "| bf16 | vaccine | | failed: ValueError: why |" in gpu_table(measured)
    assert gpu_table(measured | {"tiny": True}).endswith("Not yet measured.\n")


def test_every_set_up_has_one_place():
    assert len(set(SETUPS.values())) == len(SETUPS) and len(set(REPAIRS.values())) == len(REPAIRS)


def test_every_method_has_a_column():
    columns = [method for _, methods in TABLES.values() for method in methods]
    assert sorted(columns) == sorted([*by_name("defenses"), *by_name("repairs")])
