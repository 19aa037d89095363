"""A customer's upload in the place of an experiment's fine-tuning data: one aligned model, many customers."""

from __future__ import annotations

import json
from pathlib import Path

from mithridate.data.files import ENDINGS, rows_of
from mithridate.errors import InputError


def name_of(file: Path) -> str:
    """A file's name without the ending that says its format."""
    ending = max((one for one in ENDINGS if file.name.lower().endswith(one)), key=len, default="")
    return file.name[: len(file.name) - len(ending)]


def of_upload(file: str | Path) -> list[str]:
    """The overrides with which an experiment fine-tunes on exactly the rows of a file, in an order by its seed.

    The rows are the user's, whatever is among them (the attack of the kind `upload`): the experiment adds no harmful
    ones. Its alignment and its tests are as before, so that a stored alignment is not computed again. The upload has
    no test rows of its own, hence no accuracy.

    Args:
        file: in any format and form that a source may have; relative to the current folder.

    Raises:
        InputError: no such file, or one without rows or of a kind that is not read.
    """
    path = Path(file).expanduser().absolute()
    try:
        if next(iter(rows_of(path)), None) is None:
            raise InputError(f"{path}: the file has no rows")
    except InputError as error:
        raise InputError(f"--upload {error}") from error
    values = {"data.task": {"source": str(path)}, "finetune.attack": {"kind": "upload"}}
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]
