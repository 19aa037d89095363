"""The loop that all executors share, over a pool played by hand: who goes out when, what is lost, what fails."""

import contextlib
from pathlib import Path

import pytest

from mithridate.errors import InputError, MithridateError
from mithridate.pipeline.executors.base import Lost, PendingCell, Scheduler
from mithridate.pipeline.executors.cells import CellTask

DONE = {"error": None, "messages": [], "seconds": 1.0}


class Played:
    """Ends one task at each look, the first that was started, as `outcomes` say (done, if they say nothing).

    Args:
        early: how many artefacts of a cell are in the store from its start on.
    """

    def __init__(self, limit=1, retries=2, outcomes=(), early=0):
        self.limit, self.retries, self.early = limit, retries, early
        self.outcomes, self.started, self.running, self.most = list(outcomes), [], [], 0
        self.cells = {}

    def submit(self, tasks):
        for task in tasks:
            self.started.append(task.label)
            self.running.append(task)
            for path in sorted(self.cells[task.label].own)[: self.early]:
                path.mkdir(exist_ok=True)
        self.most = max(self.most, len(self.running))

    def wait(self, seconds):
        task = self.running.pop(0)
        wanted, outcome = self.outcomes[0] if self.outcomes else ("", DONE)
        if wanted == task.label:
            self.outcomes.pop(0)
        else:
            outcome = DONE
        if outcome == DONE:
            for path in self.cells[task.label].own:
                path.mkdir(exist_ok=True)
        return [(task, outcome, "here")]


def failed(kind="known", message="broke"):
    return {"error": {"kind": kind, "message": message, "traceback": ""}, "messages": [], "seconds": 1.0}


@pytest.fixture
def play(tmp_path):
    def play(pool, cells):
        made = []
        for label, own, waits in cells:
            task = CellTask(label, {}, "", "", [f"key of {label}"])
            made.append(PendingCell(task, {tmp_path / name for name in own}, {tmp_path / name for name in waits}))
        pool.cells = {cell.task.label: cell for cell in made}
        Scheduler(made, lambda: contextlib.nullcontext(pool)).run(pool)
        return pool

    return play


GRID = [
    ("A1", ["a-align", "a-finetune"], []),
    ("A2", ["a2"], ["a-align"]),
    ("A3", ["a3"], ["a-align"]),
    ("B1", ["b-align", "b-finetune"], []),
    ("B2", ["b2"], ["b-align"]),
    ("A4", ["a4"], ["a-align", "a-finetune"]),
]


def test_what_starts_from_nothing_goes_out_first(play):
    pool = play(Played(limit=2), GRID)
    assert pool.started == ["A1", "B1", "A2", "A3", "B2", "A4"]
    assert pool.most == 2


def test_a_shared_stage_frees_the_others_before_its_own_cell_is_done(play):
    pool = play(Played(limit=9, early=1), GRID)  # the alignments are there while A1 and B1 go on
    assert pool.started == ["A1", "B1", "A2", "A3", "B2", "A4"]
    assert pool.most == 5  # B2 beside B1; and A4, which needs A1's fine-tune too, once A1 is done


def test_a_lost_task_is_given_out_again_and_first(play, caplog):
    pool = play(Played(outcomes=[("A1", Lost("its process died"))]), GRID)
    assert pool.started == ["A1", "A1", "A2", "A3", "B1", "B2", "A4"]
    assert "A1 (here): its process died. It is made again." in caplog.text


def test_what_is_lost_again_and_again_is_an_error_and_the_rest_is_made(play):
    pool = Played(retries=2, outcomes=[("B1", Lost("its process died"))] * 3)
    with pytest.raises(
        MithridateError, match=r"^B1 \(here\): its process died, 3 times \(cells left out, which start from it: 1\)$"
    ) as error:
        play(pool, GRID)
    assert error.value.exit_code == 1
    assert pool.started == ["A1", "A2", "A3", "B1", "B1", "B1", "A4"]


def test_a_failed_cell_leaves_out_what_starts_from_it_and_no_more(play, tmp_path):
    pool = Played(outcomes=[("A1", failed(message="the loss is not finite"))])
    chain = [*GRID, ("A5", ["a5"], ["a4"])]
    with pytest.raises(
        MithridateError, match=r"^A1 \(here\): the loss is not finite \(cells left out, which start from it: 4\)$"
    ):
        play(pool, chain)
    assert pool.started == ["A1", "B1", "B2"]


def test_a_cell_that_fails_after_what_others_need_keeps_none_from_being_made(play):
    pool = Played(early=2, outcomes=[("A1", failed())])
    with pytest.raises(MithridateError, match=r"^A1 \(here\): broke$"):
        play(pool, GRID)
    assert sorted(pool.started) == ["A1", "A2", "A3", "A4", "B1", "B2"]


def test_bad_input_ends_the_run_at_once(play):
    pool = Played(outcomes=[("A1", failed("input", "no such file"))])
    with pytest.raises(InputError, match=r"^A1 \(here\): no such file$"):
        play(pool, GRID)
    assert pool.started == ["A1"]


def test_what_vanished_from_the_store_does_not_hold_the_run_up(play, tmp_path):
    pool = play(Played(), [("A2", ["a2"], ["never there"])])
    assert pool.started == ["A2"] and (tmp_path / "a2").is_dir()


def test_progress_counts_cells_and_estimates_the_rest(play, caplog):
    with caplog.at_level("INFO", "mithridate"):
        play(Played(limit=2), GRID)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "[1/6] A1: 1 s (here)"  # the other worker has not ended one yet
    assert lines[1] == "[2/6] B1: 1 s (here), about 0 s left"
    assert lines[5] == "[6/6] A4: 1 s (here)"


def test_a_run_that_is_over_gives_out_no_more():
    pool = Played()
    scheduler = Scheduler(
        [PendingCell(CellTask("A", {}, "", "", ["k"]), {Path("a")}, set())], lambda: contextlib.nullcontext(pool)
    )
    scheduler._over.set()
    scheduler.run(pool)
    assert pool.started == []
