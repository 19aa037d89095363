"""One aligned model, many customers: an upload is fine-tuned on as it is, over the alignment that the store has."""

import json

import pytest

from mithridate import InputError, run
from mithridate.experiment.uploads import of_upload
from tests.pipeline.small import experiment, stages, write_inputs


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))
    return write_inputs(tmp_path / "inputs")


def test_a_second_customer_costs_no_second_alignment(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = experiment(inputs, align__defense={"booster": {"lam": 2}})
    first = run(asked, out="first", progress=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("align*/**/stage.json")}
    assert before
    rows = [
        {"messages": [{"role": "user", "content": f"order {i}"}, {"role": "assistant", "content": f"sent {i}"}]}
        for i in range(7)
    ]
    (tmp_path / "customer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(asked, of_upload("customer.jsonl"), out="customer", progress=False)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("align*/**/stage.json")}
    assert after == before  # not one alignment was made, or made again
    attacked = [cell for cell in done.results["cells"] if cell["attack"]]
    assert attacked and all(cell["attack"]["size"] == 7 and cell["harmful_ratio"] == 0 for cell in attacked)
    aligned = [
        {c["id"]: c["weights_digest"] for c in each.results["cells"] if not c["attack"]} for each in (first, done)
    ]
    assert aligned[0] == aligned[1]
    assert len(stages(tmp_path / "store")) > 0


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no such file"), ("", "the file has no rows"), ("{", "not JSON")]
)
def test_an_upload_that_cannot_be_read_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=f"--upload .*a.jsonl.*{words}"):
        of_upload(tmp_path / "a.jsonl")
