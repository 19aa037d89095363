"""A customer's upload in the place of an experiment's fine-tuning data: one aligned model, many customers."""

from __future__ import annotations

import json
from pathlib import Path

from mithridate.data.files import rows_of
from mithridate.errors import InputError


def of_upload(file: str | Path) -> list[str]:
    """The overrides with which an experiment fine-tunes on exactly the rows of a file, in an order by its seed.

    The rows are the user's, whatever is among them: the experiment adds no harmful ones. Its alignment and its tests
    are as before, so that a stored alignment is not computed again. The upload has no test rows of its own, hence no
    accuracy.

    Args:
        file: in any format and form that a source may have; relative to the current folder.

    Raises:
        InputError: no such file, or one without rows or of a kind that is not read.
    """
    path = Path(file).expanduser().absolute()
    try:
        count = sum(1 for _ in rows_of(path))
    except InputError as error:
        raise InputError(f"--upload {error}") from error
    attack = {"finetune.attack.harmful_ratio": 0, "finetune.attack.size": count}
    return [f"{name}={json.dumps(value)}" for name, value in {"data.task": {"source": str(path)}, **attack}.items()]
