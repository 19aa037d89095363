"""Which control a defended model is held against."""

from mithridate.results.relations import relate
from tests.report import synthetic


def test_a_control_is_of_the_same_attack():
    """Kinds of rows and lengths of the training at one share of harmful rows, each with a control of its own."""
    cells = []
    for number, own in enumerate(({"kind": "harmful"}, {"kind": "opener"}, {"kind": "harmful", "max_steps": 2})):
        for control in (None, "random-rows"):
            near = 2 - number if control else number  # the nearest by accuracy is another attack's
            cell = synthetic.cell(finetuning="filter", control=control, accuracy=0.5 + near / 10)
            cells.append(cell | {"id": f"{cell['id']}-{number}", "attack": cell["attack"] | own})
    cells = synthetic.read(*cells)
    for one in cells:
        for field in ("nearest_control", "control_of", "role", "reference", "aligned"):
            one.pop(field, None)
    found = {cell["id"]: cell for cell in relate(cells)}
    for cell in found.values():
        if cell["control"]:
            assert found[cell["control_of"]["id"]]["attack"] == cell["attack"]
        else:
            assert found[cell["nearest_control"]]["attack"] == cell["attack"]
