"""Cells as tasks of a real Ray cluster of two nodes, here on one machine; one node dies in the middle of a cell."""

import importlib.util
import sys
import threading
import time

import pytest

from mithridate import run
from mithridate.errors import InputError
from mithridate.pipeline.executors import Ray
from tests.pipeline.small import experiment, weights, without_costs, write_inputs

# Long enough that both cells train at once for a while, though one worker may start seconds after the other.
LONG = {"learning_rate": 0.001, "max_steps": 300, "per_device_train_batch_size": 2, "save_steps": 5}
SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(tmp_path / "inputs")


def test_without_ray_it_is_refused_with_the_remedy(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(InputError, match=r"pip install 'mithridate\[ray\]'"):
        Ray().check([])


@pytest.fixture
def cluster(monkeypatch):
    """A head with one CPU and a node with one."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    made = Cluster(initialize_head=True, head_node_args=SMALL)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.mark.slow
def test_a_node_that_dies_costs_its_own_cell_alone(inputs, tmp_path, monkeypatch, cluster, caplog):
    """Two seeds, one on each node. The node that is killed has its cell finished by the other, from its checkpoint."""
    store = tmp_path / "store"
    monkeypatch.setenv("MITHRIDATE_STORE", str(store))
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    asked = experiment(inputs, align__training=LONG, finetune="none", sweep={"seed": [0, 1]})

    def kill():
        until = time.monotonic() + 120
        while len({p.parents[2] for p in store.glob("work/align-*/trainer/checkpoint-*/trainer_state.json")}) < 2:
            if time.monotonic() > until:
                return
            time.sleep(0.005)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    with caplog.at_level("INFO", "mithridate"):
        made = run(asked, out=tmp_path / "out", progress=False, executor=Ray(address=cluster.address))
    thread.join()
    assert caplog.text.count("resuming from step") == 1
    assert "[2/2]" in caplog.text and "(node " in caplog.text
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "other"))
    plain = run(asked, out=tmp_path / "plain", progress=False)
    assert weights(tmp_path / "other") == weights(store)
    assert without_costs(plain.results) == without_costs(made.results)
