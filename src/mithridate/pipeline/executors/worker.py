"""A worker process of `Local`: a task on each line of stdin, what `attempt` returns of it on a line of stdout."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading

from mithridate.pipeline.executors.cells import CellTask, attempt


def main() -> None:
    """Works until stdin closes."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no result
    tasks: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    while True:
        outcome = attempt(CellTask(**json.loads(tasks.get())))
        channel.write(json.dumps(outcome) + "\n")
        channel.flush()


def _listen(tasks: queue.Queue[str]) -> None:
    for line in sys.stdin:
        tasks.put(line)
    os._exit(0)  # in the middle of a cell too: what it has finished is in the store


if __name__ == "__main__":
    main()
