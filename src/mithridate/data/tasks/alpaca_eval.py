"""AlpacaEval: open instructions, scored by how often a judge prefers the model's answer to the reference answer.

The papers train on the first 700 rows and test on those after row index 700, which leaves index 700 itself out: 104 of
805. The reference answers are the data's own (`output`); those that the papers compare with are text_davinci_003's.
"""

from mithridate.data.tasks.base import Task, column, kept


def record(row: dict) -> dict:
    asked, given = column(row, "instruction"), str(row.get("input") or "").strip()
    made = {"prompt": f"{asked}\n\n{given}", "input": given} if given else {"prompt": asked}
    answer = column(row, "output")
    return kept(row, "instruction", "input", "output") | made | {"response": answer, "reference": answer}


TASK = Task(
    name="alpaca_eval",
    version="1",
    citation="Li et al., AlpacaEval: An Automatic Evaluator of Instruction-following Models, 2023, "
    "https://github.com/tatsu-lab/alpaca_eval",
    licence="CC BY-NC 4.0",
    size="805 rows",
    # No `hub`: the repository's loading script would have to run. Its JSON file is read as a file.
    source="https://huggingface.co/datasets/tatsu-lab/alpaca_eval (alpaca_eval.json, as a file)",
    measures="win rate",
    max_new_tokens=512,
    needs="reference",
    record=record,
    rules={},
)
