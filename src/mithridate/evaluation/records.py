"""What is kept of each answer of an evaluated model."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
"""One record. Columns:

- `set` ("harmful", "benign", "task": the user's task, "extra": a further task), `task` (its name), `id`, `category`,
  where answers were sampled `sample` (the number of the answer among those to the same prompt);
- `prompt` (the user turns), `answer`, `label` (text of a task's right answer), `correct` (bool, of scored tasks),
  `reference` (the answer that a win rate compares with);
- `verdict`, `reason`, `score` and `judge`: of the one judge that the protocol has for that set (None where it has
  none; a verdict of None beside a judge, or of "unclear", is unscored, and `reason` says why);
- for each further judge NAME: `judge/NAME` (its verdict), `judge/NAME/reason`, `judge/NAME/score`;
- `protocol`, `new_tokens`, `prompt_tokens`, `seconds`, `finished` (the model ended the answer itself).
"""
