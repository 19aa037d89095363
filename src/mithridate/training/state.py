"""The state of defenses beside a checkpoint, and what is refused when training goes on from one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mithridate.errors import InputError, UnsupportedSetup
from mithridate.training.gradients import gathered
from mithridate.training.gradients import sharded as is_sharded

if TYPE_CHECKING:
    from mithridate.training.mixin import DefenseMixin


def _described(trainer: DefenseMixin) -> list[dict[str, Any]]:
    return [{"defense": type(d).__name__, "settings": d.settings()} for d in trainer.defenses]


def save_state(trainer: DefenseMixin, folder: Path, passes: int, start: Sequence[Tensor] | None) -> None:
    """Writes which defenses run, and their training state, into a checkpoint folder: the rank that saves does, and
    where weights are sharded the others bring it their shards.

    Args:
        passes: over the training set that were begun.
        start: the trained weights at the start, where a defense compares with them: their digest is kept.
    """
    writes = trainer.args.should_save
    if not (writes or trainer._sharded):
        return
    tensors: dict[str, Tensor] = {}
    sharded: list[str] = []
    for d in trainer.defenses:
        for key, tensor in d.state_dict(trainer).items():
            name, complete = f"{type(d).__name__}.{key}", gathered(tensor.detach())
            if writes:
                tensors[name] = complete.cpu().contiguous()
            if is_sharded(tensor):
                sharded.append(name)
    digest = _digest(start)
    if not writes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "defense.safetensors")
    facts = {
        "format": 1,
        "defenses": _described(trainer),
        "passes": passes,
        "start": digest,
        "sharded": sharded,
    }
    (folder / "defense.json").write_text(json.dumps(facts, indent=1))


def load_state(trainer: DefenseMixin, folder: Path, start: Sequence[Tensor] | None) -> None:
    """Takes back what `save_state` wrote.

    Raises:
        InputError: the checkpoint was written with other defenses or settings or from another start model, or its
            state is missing or broken.
        UnsupportedSetup: the training set is a stream that had begun anew when the checkpoint was written.
    """
    file = folder / "defense.json"
    try:
        facts: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"defenses": []}
        written = facts["defenses"]
        tensors = load_file(folder / "defense.safetensors") if written else {}
    except Exception as error:
        raise InputError(
            f"{folder}: the defense's state cannot be read ({error}). Resume from another checkpoint."
        ) from error
    wanted = json.loads(json.dumps(_described(trainer)))
    if written != wanted:
        raise InputError(
            f"{folder} was written with defense={written}, but this run has defense={wanted}. "
            "Resume with the same defense and settings, or start a new run from the weights."
        )
    if not hasattr(trainer.train_dataset, "__len__") and facts.get("passes", 1) > 1:
        raise UnsupportedSetup(
            f"{folder}: the training set is a stream, and this checkpoint is from its {facts['passes']}th pass: the "
            "Trainer cannot find the place in it again, so the resumed run would see other rows.",
            "pass a datasets.Dataset, or start a new run from the weights.",
        )
    if facts.get("start") != _digest(start):
        raise InputError(
            f"{folder} was written by a run from other weights than this one's, and the defense compares with those "
            "that a run started from. Build the trainer on the model that the run began with."
        )
    from torch.distributed.tensor import Shard, distribute_tensor

    weight: Any = trainer.params[0]
    for name in facts.get("sharded", []):
        # as the weights are: FSDP2 splits along the first axis
        tensors[name] = distribute_tensor(tensors[name], weight.device_mesh, [Shard(0)])
    for d in trainer.defenses:
        prefix = type(d).__name__ + "."
        d.load_state_dict(trainer, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def _digest(tensors: Sequence[Tensor] | None) -> str | None:
    if tensors is None:
        return None
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(gathered(tensor.detach()).cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def refuse_inexact_resume(trainer: DefenseMixin) -> None:
    """Refuses to go on from a checkpoint where the Trainer itself would not train what the whole run would have.

    Raises:
        UnsupportedSetup: with the reason and a remedy.
    """
    args = trainer.args
    by_length = getattr(args, "train_sampling_strategy", None) == "group_by_length"
    by_length |= bool(getattr(args, "group_by_length", False))  # its name under older transformers
    for refused, reason, remedy in (
        (
            by_length,
            "rows grouped by length are drawn from the global random generator, so a resumed run sees other rows than "
            "the uninterrupted one.",
            "train_sampling_strategy='random'.",
        ),
        (
            bool(args.save_only_model),
            "with save_only_model=True a checkpoint has no state of the optimizer.",
            "train with save_only_model=False, or start a new run from the weights.",
        ),
        (
            bool(args.ignore_data_skip),
            "with ignore_data_skip=True a resumed run begins the data anew.",
            "ignore_data_skip=False.",
        ),
    ):
        if refused:
            names = ", ".join(type(d).__name__ for d in trainer.defenses)
            raise UnsupportedSetup(f"{names}: {reason}", remedy)
