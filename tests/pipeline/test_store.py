"""The store: keys, atomic artefacts, one builder at a time, damage found, a full disk explained."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mithridate.errors import InputError, MithridateError
from mithridate.files import canonical_json
from mithridate.store import Store, default_root

KEY = Store.key("align", {"lr": 1e-3}, {"model": "abc"}, {"alignment": "def"}, 1)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
configs = st.dictionaries(st.text(max_size=3), values, max_size=4)


def build(store, text="weights", key=KEY, meta=None):
    with store.building("align", key, meta or {}) as work:
        if work is not None:
            (work / "model").mkdir(exist_ok=True)
            (work / "model" / "weights.bin").write_text(text)
    return store.folder("align", key)


# -- keys ------------------------------------------------------------------------------------------


@given(configs)
def test_the_key_does_not_depend_on_order_or_on_how_a_number_is_written(config):
    def reordered(value):
        if isinstance(value, dict):
            return {key: reordered(value[key]) for key in reversed(value)}
        if isinstance(value, list):
            return [reordered(item) for item in value]
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return value

    assert Store.key("align", config, {}, {}, 1) == Store.key("align", reordered(config), {}, {}, 1)


@given(configs, configs)
def test_different_configurations_have_different_keys(one, other):
    same = canonical_json(one) == canonical_json(other)
    assert (Store.key("align", one, {}, {}, 1) == Store.key("align", other, {}, {}, 1)) == same


@given(configs)
def test_canonical_json_keeps_the_value(config):
    assert json.loads(canonical_json(config)) == config


def test_every_part_changes_the_key():
    parts = ["align", {"lr": 0.1}, {"model": "a"}, {"alignment": "b"}, 1]
    changed = ["finetune", {"lr": 0.2}, {"model": "c"}, {"alignment": "d"}, 2]
    keys = {Store.key(*parts[:i], changed[i], *parts[i + 1 :]) for i in range(5)} | {Store.key(*parts)}
    assert len(keys) == 6
    # True is not 1, and text is not a number
    assert len({Store.key("align", {"a": value}, {}, {}, 1) for value in (True, 1, "1", None, [1])}) == 5


def test_a_key_is_the_same_in_another_process():
    code = (
        "from mithridate.store import Store;"
        "print(Store.key('align', {'lr': 1e-3}, {'model': 'abc'}, {'alignment': 'def'}, 1))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == KEY


def test_values_that_no_key_can_hold_are_refused_with_their_path():
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises(InputError, match=r"^config\.a\.1\.b: "):
            Store.key("align", {"a": [0, {"b": value}]}, {}, {}, 1)


# -- artefacts -------------------------------------------------------------------------------------


def test_a_built_stage_is_found_with_its_manifest(tmp_path):
    store = Store(tmp_path / "store")
    assert store.find("align", KEY) is None
    meta = {"config": {"lr": 1e-3}, "parents": {"model": "abc"}}
    with store.building("align", KEY, meta) as work:
        assert work is not None and not store.folder("align", KEY).exists()
        (work / "weights.bin").write_text("weights")
        (work / "empty").touch()
        ballast = bytearray(40_000_000)  # held for longer than the memory is sampled at
        time.sleep(0.25)
        meta["seeds"] = [3]  # what the build adds is recorded too
        del ballast
    found = store.find("align", KEY)
    assert found == tmp_path / "store" / f"align-{KEY[:12]}"
    manifest = json.loads((found / "stage.json").read_text())
    assert manifest["stage"] == "align" and manifest["key"] == KEY and manifest["config"] == {"lr": 1e-3}
    assert manifest["parents"] == {"model": "abc"} and manifest["seeds"] == [3]
    assert manifest["files"]["weights.bin"]["bytes"] == 7 and set(manifest["files"]) == {"weights.bin", "empty"}
    assert (
        manifest["versions"]["torch"] and manifest["versions"]["python"] and manifest["hardware"]["memory_bytes"] > 0
    )
    assert 0.25 <= manifest["seconds"] < 60 and manifest["peak_memory_bytes"] > 40_000_000
    assert manifest["started"] <= manifest["finished"]
    assert not (tmp_path / "store" / "work" / found.name).exists()
    with store.building("align", KEY, {}) as work:
        assert work is None  # nothing to do
    assert Store(tmp_path / "store").find("align", KEY) == found


def test_the_store_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "mine"))
    assert Store().root == default_root() == tmp_path / "mine"
    monkeypatch.delenv("MITHRIDATE_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Store().root == tmp_path / "cache" / "mithridate" / "store"


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt()])
def test_an_error_or_an_interrupt_keeps_the_work_and_publishes_nothing(tmp_path, error):
    store = Store(tmp_path)
    with pytest.raises(type(error)), store.building("align", KEY, {}) as work:
        (work / "checkpoint-10").write_text("half")
        raise error
    assert store.find("align", KEY) is None and not store.folder("align", KEY).exists()
    with store.building("align", KEY, {}) as work:
        assert (work / "checkpoint-10").read_text() == "half"  # the stage can resume
        (work / "checkpoint-10").unlink()
        (work / "weights.bin").write_text("whole")
    assert sorted(p.name for p in store.find("align", KEY).iterdir()) == ["stage.json", "weights.bin"]


def damage_flip(folder):
    path = folder / "model" / "weights.bin"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


def damage_truncate(folder):
    os.truncate(folder / "model" / "weights.bin", 3)


def damage_remove(folder):
    (folder / "model" / "weights.bin").unlink()


def damage_manifest(folder):
    path = folder / "stage.json"
    path.write_text(path.read_text().replace('"lr": 0.001', '"lr": 0.002'))


def damage_manifest_cut(folder):
    os.truncate(folder / "stage.json", 40)


@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, damage_remove, damage_manifest, damage_manifest_cut])
@pytest.mark.parametrize("seen_before", [False, True])
def test_damage_is_found_said_and_computed_again(tmp_path, damage, seen_before, caplog):
    store = Store(tmp_path)
    folder = build(store, meta={"config": {"lr": 0.001}})
    if seen_before:
        assert store.find("align", KEY) == folder
        time.sleep(0.01)  # another time stamp than the one remembered
    damage(folder)
    with caplog.at_level(logging.WARNING, logger="mithridate"):
        assert store.find("align", KEY) is None
    assert f"{folder.name} is corrupted" in caplog.text and "computed again" in caplog.text
    [aside] = (tmp_path / "corrupt").iterdir()
    assert aside.name.startswith(folder.name)
    assert build(store, meta={"config": {"lr": 0.001}}) == store.find("align", KEY)
    assert (folder / "model" / "weights.bin").read_text() == "weights"


def test_building_replaces_a_damaged_artefact(tmp_path):
    store = Store(tmp_path)
    damage_flip(build(store))
    with store.building("align", KEY, {}) as work:
        assert work is not None and not any(work.iterdir())
        (work / "weights.bin").write_text("new")
    assert store.find("align", KEY)


# -- a full disk -----------------------------------------------------------------------------------


def fails(error):
    def failing(*_, **__):
        raise error

    return failing


def test_a_full_disk_while_building(tmp_path):
    store = Store(tmp_path)
    with (
        pytest.raises(MithridateError, match=r"no space left .*MITHRIDATE_STORE"),
        store.building("a", KEY, {}) as work,
    ):
        (work / "weights.bin").symlink_to("/dev/full")  # a write there fails as on a full disk
        (work / "weights.bin").write_text("x" * 100)
    assert not store.folder("a", KEY).exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("basic_ios::clear: iostream error"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    ],
)
def test_a_full_disk_while_finishing(tmp_path, monkeypatch, error):
    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mithridate.store.os.fsync", fails(error))
        with pytest.raises(MithridateError, match="no space left") as caught:
            build(store)
    assert caught.value.exit_code == 1 and caught.value.__cause__ is error
    assert store.find("align", KEY) is None and not store.folder("align", KEY).exists()
    assert build(store) == store.find("align", KEY)  # the next run goes on


def test_torch_says_nothing_of_the_disk(tmp_path, monkeypatch):
    error = RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0")
    with pytest.raises(RuntimeError, match="Pytorch"), Store(tmp_path).building("a", KEY, {}):
        raise error
    usage = type("Usage", (), {"free": 4096})
    monkeypatch.setattr("mithridate.store.shutil.disk_usage", lambda _: usage)
    with pytest.raises(MithridateError, match="no space left"), Store(tmp_path).building("a", KEY, {}):
        raise error


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="MITHRIDATE_STORE"), Store(tmp_path / "file").building("a", KEY, {}):
        raise AssertionError("not reached")


def test_a_store_of_another_user_that_has_its_locks_already(tmp_path, monkeypatch):
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr("mithridate.store.FileLock.acquire", fails(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(InputError, match=r"\(Permission denied\): set MITHRIDATE_STORE"), Store(tmp_path).locked("a"):
        raise AssertionError("not reached")


# -- several processes, some killed ------------------------------------------------------------------

BUILDER = """
import logging, os, signal, sys, time
from pathlib import Path
from mithridate.store import Store
logging.basicConfig()
root, key, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if mode.startswith("die-at-sync-"):
    left, sync = int(mode.rsplit("-", 1)[1]), os.fsync
    def counted(handle):
        global left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        sync(handle)
    os.fsync = counted
with Store(root).building("align", key, {}) as work:
    if work is None:
        print("finished by another", flush=True)
    else:
        (work / "weights.bin").write_text("weights")
        print("building", flush=True)
        if mode == "hang":
            time.sleep(60)
        while mode == "until told" and not (root / "go").exists():
            time.sleep(0.01)
"""


def start(root: Path, mode: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(root), KEY, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_kill_9_while_building(tmp_path):
    builder = start(tmp_path, "hang")
    assert builder.stdout.readline() == "building\n"
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    store = Store(tmp_path)
    assert store.find("align", KEY) is None and not store.folder("align", KEY).exists()
    with store.building("align", KEY, {}) as work:  # the dead process's lock is free
        assert (work / "weights.bin").read_text() == "weights"
    assert store.find("align", KEY)


@pytest.mark.parametrize("sync", range(4))  # weights.bin, stage.json, the work folder; then, renamed, the store
def test_kill_9_while_finishing(tmp_path, sync):
    builder = start(tmp_path, f"die-at-sync-{sync}")
    builder.communicate()
    assert builder.returncode == -signal.SIGKILL
    store = Store(tmp_path)
    assert (store.find("align", KEY) is not None) == (sync == 3)
    assert store.folder("align", KEY).exists() == (sync == 3)
    assert build(store) == store.find("align", KEY)


def test_two_processes_build_a_stage_once(tmp_path):
    first = start(tmp_path, "until told")
    assert first.stdout.readline() == "building\n"
    second = start(tmp_path, "until told")
    assert "waiting for it" in second.stderr.readline()
    (tmp_path / "go").touch()
    out, _ = second.communicate(timeout=60)
    first.communicate(timeout=60)
    assert first.returncode == second.returncode == 0
    assert out == "finished by another\n"
    assert Store(tmp_path).find("align", KEY)
