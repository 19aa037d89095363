"""Makes the nodes of a graph in order, in this process or by a scheduler's workers; says how far along the run is."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mithridate.pipeline.building import make
from mithridate.pipeline.executors.base import Scheduler
from mithridate.pipeline.graph import Node
from mithridate.progress import time_left
from mithridate.store import MANIFEST

logger = logging.getLogger(__name__)


class StageMaker:
    """Makes nodes, each once, and remembers what each cost. With a scheduler, its workers make them and it says so."""

    def __init__(self, nodes: Sequence[Node], scheduler: Scheduler | None = None):
        self.scheduler = scheduler
        self.missing = {node.key: node.stage.name for node in nodes if not node.made}
        self.total = len(self.missing)
        self.left = Counter(self.missing.values())  # by name, the stages still to be made
        self.made: Counter[str] = Counter()  # those that were made
        self.spent: Counter[str] = Counter()  # and their seconds
        self.costs: dict[str, dict[str, Any]] = {}  # by key, as results.json has them

    def make(self, node: Node) -> None:
        """Returns once the store has the node."""
        name, key = node.stage.name, node.key
        if key in self.costs:
            return
        if key in self.missing and self.scheduler:
            self.scheduler.wait(node)
        elif key in self.missing:
            number = self.total - len(self.missing) + 1
            logger.info("[%d/%d] %s%s", number, self.total, node.label, self._time_left())
        cached = make(node.chain, node.stage) and key not in self.missing
        record = json.loads((node.folder / MANIFEST).read_text())
        cost = {"name": name, "seconds": record["seconds"], "peak_memory_bytes": _peak(record)}
        self.costs[key] = {**cost, "cached": cached}
        if self.missing.pop(key, None):
            self.left[name] -= 1
            self.made[name] += 1
            self.spent[name] += record["seconds"]

    def _time_left(self) -> str:
        """The time left, once a stage of each kind that is still to come has been seen."""
        left = {name: count for name, count in self.left.items() if count}
        if not all(self.made[name] for name in left):
            return ""
        seconds = sum(count * self.spent[name] / self.made[name] for name, count in left.items())
        return f", {time_left(seconds)}"


def _peak(record: dict[str, Any]) -> int:
    """Bytes of memory: of the process that made a stage, or of all that trained it together."""
    return sum(rank["peak_memory_bytes"] for rank in record.get("ranks", ())) or record["peak_memory_bytes"]
