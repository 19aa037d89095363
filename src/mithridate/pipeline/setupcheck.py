"""Trying a run's set-ups before it: its trainers and repairs are built over one random layer of the model, so that the
libraries and the methods have been asked before anything is computed.

Each error begins with the path of a field in the experiment file.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mithridate.data.records import prompt_key
from mithridate.errors import InputError, MithridateError, UnsupportedSetup, first_line
from mithridate.experiment.methods import acting, follows, plain_by, repair_of, trained_adapter
from mithridate.models import held_quantisation
from mithridate.pipeline import rowcheck
from mithridate.pipeline.jobs import repair_rows
from mithridate.pipeline.precheck import Part, left_of, planned
from mithridate.pipeline.stages import ExperimentStages

if TYPE_CHECKING:
    from mithridate.pipeline.rowcheck import Left
    from mithridate.pipeline.training import Job
    from mithridate.training.trainer import DefenseTrainer

_FEW = 64  # rows that a set-up is tried out on; the others are counted by `rowcheck`


def try_out(chain: ExperimentStages, name: str, parts: Sequence[Part], folder: Path) -> None:
    """Builds the trainers of a stage over one random layer of the model, on a few of the rows; so the libraries and
    the defenses have been asked.

    Raises:
        UnsupportedSetup: a defense refuses the set-up.
        InputError: SFTConfig, TRL, PEFT or transformers do, with the field that they refuse; a defense refuses one.
    """
    if chain.experiment.template == "chat":
        _ = chain.tokenizer  # with a chat template, or refused
    before = chain.free_adapter(name, "start")
    if before is not None and parts and parts[0].job.adapter != before:
        _require_merging(_one_layer(chain, before), "adapter", before)
    for part in parts:
        trainer = _try_part(chain, name, part, folder, fresh=part.job.adapter != before)
        before = part.job.adapter
        if before is not None and _merged_later(chain, name, part, parts):
            _require_merging(trainer.model, f"{part.before}adapter", before)


def _merged_later(chain: ExperimentStages, name: str, part: Part, parts: Sequence[Part]) -> bool:
    """Whether the adapter of a training is merged before the next one, which trains another."""
    if name == "align" and chain.experiment.topology == "double":
        return True
    after = parts[parts.index(part) + 1 :]
    return bool(after) and after[0].job.adapter != part.job.adapter


def _require_merging(model: Any, path: str, adapter: Mapping[str, Any]) -> None:
    """Raises InputError, naming the field, for an adapter whose change cannot be put into the weights beneath."""
    from mithridate.repairs.linears import check_adapters

    try:
        check_adapters(model)
    except UnsupportedSetup as error:
        field = "target_parameters" if adapter.get("target_parameters") else "target_modules"
        raise InputError(
            f"{path}.{field}: {error.reason} The training after it has another adapter, under which "
            "this one is merged, and it cannot be. Name nn.Linear layers alone, or go on training the same adapter "
            "(topology: single)"
        ) from error


def _try_part(chain: ExperimentStages, name: str, part: Part, folder: Path, fresh: bool) -> DefenseTrainer:
    from mithridate.pipeline.arguments import LIBRARY_ERRORS

    if part.job.adapter is None and _over_quantised(chain, name, part.job):
        raise InputError(
            f"{part.path}: trains all weights (adapter: full), and the base's are quantised, which hold no steps. "
            "Train an adapter, or take out quantization"
        )
    _require_layers(chain, part)
    sides = {role: _some(found, left_of(chain, part, found)) for role, found in part.job.side_rows.items()}
    rows = part.job.rows[:_FEW]
    if chain.experiment.paired:  # with their pairs, wherever these stand
        known = {prompt_key(row) for side in sides.values() for row in side}
        rows += [row for row in part.job.rows[_FEW:] if prompt_key(row) in known]
    # The rows that are left out must not make fewer steps, nor several processes more.
    job = replace(
        part.job,
        rows=rows,
        side_rows=sides,
        # of which the defenses, which are asked too, may make fewer
        training=part.job.training | {"max_steps": planned(chain, part, len(part.job.rows), defended=False)},
        progress=False,
        report_to=[],
        # The judges are asked in the run itself.
        verdicts={path: ["safe"] * len(rows) for path in chain.guards(name)},
    )
    try:
        trainer = _build(chain, name, job, folder)
        if _still(trainer) and fresh:
            raise InputError(
                f"{part.path}.frozen: of a new adapter the factors B, which are 0, are frozen, so that A has no "
                "gradient and nothing can move. Let B be trained, or train on the alignment's adapter (topology: "
                "single)"
            )
    except UnsupportedSetup as error:
        if not job.defense:
            raise
        raise UnsupportedSetup(f"{part.path}.defense: {error.reason}", error.remedy) from error
    except MithridateError:
        for role, side in part.job.side_rows.items():  # of which a defense may say less than is known here
            rowcheck.require_rows(left_of(chain, part, side), part.path, role, part.args)
        raise
    except LIBRARY_ERRORS as error:
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            raise
        fields = _culprits(chain, name, part, job, folder)
        place = fields[0].rpartition(".")[0] if fields else f"{part.path}.training"
        named = f" (field: {' or '.join(fields)})" if fields else ""
        raise InputError(f"{place}: {_reason(error, first_line(error))}{named}") from error
    return trainer


def _some(rows: list[dict[str, Any]], left: Left) -> list[dict[str, Any]]:
    """A few rows to try a set-up on, of those of which something is left where there are any."""
    lost = set(left.lost)
    return [row for place, row in enumerate(rows) if place not in lost][:_FEW] or rows[:_FEW]


def _reason(error: Exception, text: str) -> str:
    return f"{text} ({type(error).__name__})" if isinstance(error, KeyError | IndexError | AttributeError) else text


def _still(trainer: DefenseTrainer) -> bool:
    """Whether only factors A of adapters are trained, whose factors B are 0."""
    weights = dict(trainer.model.named_parameters())
    trained = trainer.param_names
    if not all("lora_A." in name for name in trained):
        return False
    return not any(bool(weights[name.replace("lora_A.", "lora_B.")].any()) for name in trained)


def _build(chain: ExperimentStages, name: str, job: Job, folder: Path) -> DefenseTrainer:
    """Builds the trainer of a job, and what it makes only when the training begins."""
    from transformers.utils import is_liger_kernel_available

    from mithridate.pipeline.training import trainer_of
    from mithridate.training.frozen import FROZEN

    models = dict.fromkeys(chain.model_kinds(name), lambda: chain.context.one_layer().state_dict())
    job = replace(job, adapter=_on_one_layer(job.adapter))
    try:
        trainer = trainer_of(job, chain.context.one_layer(), folder, models, copy.deepcopy(chain.tokenizer))
    except InputError as error:
        if not (job.frozen and str(error).startswith(FROZEN)):
            raise
        # of other layers than the one here; of all of them it was asked before
        job = replace(job, frozen=[])
        trainer = trainer_of(job, chain.context.one_layer(), folder, models, copy.deepcopy(chain.tokenizer))
    if trainer.args.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError("use_liger_kernel needs the package liger-kernel: pip install liger-kernel")
    if _over_quantised(chain, name, job):  # which the one layer of random weights is not
        held: Any = trainer.model.get_base_model()
        held.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="bitsandbytes"))
        trainer.check_setup()
    trainer.create_optimizer()
    trainer.create_scheduler(num_training_steps=trainer.args.max_steps)
    if chain.launch and chain.launch.kind == "fsdp2":
        trainer.sharded_by_plugin = True  # as it will be in each of the processes
        trainer.check_setup()
    return trainer


def _culprits(chain: ExperimentStages, name: str, part: Part, job: Job, folder: Path) -> list[str]:
    """The fields of a training by which the libraries' refusal comes: without any one of them there is none.

    Found by leaving out one at a time: their errors name fields in words of their own, if at all.

    Args:
        job: that of `part`, as it is tried out.
    """
    from mithridate.pipeline.arguments import LIBRARY_ERRORS

    finetune = chain.experiment.finetune
    own = part.stage == "finetune" and finetune is not None and finetune.adapter is not None
    adapter = f"{part.before}{'finetune.adapter' if own else 'adapter'}"
    tried = [
        (f"{part.path}.training.{field}", replace(job, training=_without(job.training, field)))
        for field in part.job.training
    ]
    if job.adapter:
        tried += [(f"{adapter}.{field}", replace(job, adapter=_without(job.adapter, field))) for field in job.adapter]
    found = []
    for path, other in tried:
        try:
            _build(chain, name, other, folder)
        except MithridateError:
            continue
        except LIBRARY_ERRORS:
            continue
        found.append(path)
    return found


def _on_one_layer(adapter: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """LoraConfig's fields for a model that has one layer, where they name others by number."""
    if adapter is None:
        return None
    made = {name: value for name, value in adapter.items() if name not in ("layers_to_transform", "layers_pattern")}
    targets = made.get("target_modules")
    if isinstance(targets, list):
        made["target_modules"] = list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?=\.)", "0", name) for name in targets))
    elif isinstance(targets, str) and "[" not in targets:  # a regular expression
        made["target_modules"] = re.sub(r"(?<!\\)\d+", r"\\d+", targets)
    return made


def _require_layers(chain: ExperimentStages, part: Part) -> None:
    """Raises InputError for an adapter or frozen tensors that the whole model has no place for: by its names, without
    its weights."""
    from mithridate.estimate.trace import Setup, whole

    adapter, frozen = part.job.adapter, tuple(part.job.frozen)
    if chain.context.base.remote_code or not (frozen or (adapter and adapter != _on_one_layer(adapter))):
        return
    setup = Setup(full=adapter is None, adapter=adapter or chain.experiment.adapter, frozen=frozen, dtype="float32")
    try:
        whole(chain.context.config, setup)
    except InputError as error:
        raise InputError(f"{part.before}{error}") from error


def require_followed(chain: ExperimentStages) -> None:
    """Asks whether a method that takes its directions from what the alignment changed has one for every layer that
    the user trains: by the whole model's names, without its weights.

    Raises:
        InputError: the alignment's adapter leaves a layer that is trained, with the field of what trains it.
    """
    experiment, context = chain.experiment, chain.context
    following = [type(one).__name__ for one in acting(experiment, "repair") if follows(one)]
    aligned = chain.adapter("align") if chain.align else None
    if not following or aligned is None or not chain.finetune or not context.here or context.base.remote_code:
        return
    try:
        before = _moved(chain, aligned, [])
        for number, phase in enumerate(chain.attack.phases(), 1):
            adapter, frozen = trained_adapter(experiment, phase), [*chain.frozen("finetune"), *phase.frozen]
            if left := sorted(_moved(chain, adapter, frozen) - before):
                where = "finetune.adapter" if phase.adapter is None else f"finetune.attack: phase {number}: adapter"
                break
        else:
            return
    except InputError:  # an adapter or patterns that fit no layer, of which `_require_layers` tells
        return
    raise InputError(
        f"{where}: trains {len(left)} layers that the alignment's adapter left as they were ({left[0]}, for one), "
        f"where {' and '.join(following)} would have no direction. Give both the same target_modules, and the same "
        "layers_to_transform"
    )


def _moved(chain: ExperimentStages, adapter: Mapping[str, Any] | None, frozen: Sequence[str]) -> set[str]:
    """Names of the linear layers within the model that a training changes; `adapter`: None where all weights are
    trained."""
    from torch import nn

    from mithridate.estimate.trace import Setup, whole
    from mithridate.repairs.linears import head_of, weights

    own = chain.experiment.adapter if adapter is None else adapter
    setup = Setup(full=adapter is None, adapter=own, frozen=tuple(frozen), dtype="float32")
    model: Any = whole(chain.context.config, setup)
    head, found = head_of(model), set()
    for name, weight in weights(model).items():
        if not isinstance(weight.module, nn.Linear) or weight.module is head or not name.endswith(".weight"):
            continue
        parts = [weight.tensor] if weight.lora is None else weight.lora.parameters()
        if any(part.requires_grad for part in parts):
            found.add(name.removesuffix(".weight"))
    return found


def _over_quantised(chain: ExperimentStages, name: str, job: Job) -> bool:
    return bool(held_quantisation(job.base)) and not plain_by(chain.experiment, name)


def _without(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def try_repair(chain: ExperimentStages, name: str) -> None:
    """Asks the repair of stage `name` (harden or repair) on one random layer, with the adapters of the models that it
    will get.

    Raises:
        UnsupportedSetup: it refuses them.
        InputError: PEFT refuses an adapter.
    """
    chosen = repair_of(chain.experiment, post_alignment=name == "harden")
    if chosen is None or not chain.context.here:
        return
    _, repair = chosen
    # Each an object of its own, as they will be.
    models = {
        field: _one_layer(chain, chain.free_adapter(name, kind)) for field, kind in repair.model_inputs().items()
    }
    model = _one_layer(chain, chain.free_adapter(name, "repaired"))
    repair.check(model, **repair_rows(chain, repair), **models, tokenizer=chain.tokenizer)


def _one_layer(chain: ExperimentStages, adapter: dict[str, Any] | None) -> Any:
    from peft import get_peft_model

    from mithridate.pipeline.training import lora

    model = chain.context.one_layer()
    if adapter is None:
        return model
    try:
        return get_peft_model(model, lora(_on_one_layer(adapter) or {}))
    except ValueError as error:
        raise InputError(f"adapter: {error}") from error
