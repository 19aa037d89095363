"""Which of SFTConfig's fields an experiment file may set, and why not the others.

Three kinds are not for a file: what the pipeline sets itself, what sends something out of this machine or runs code
that came with a model, and what makes a resumed training another one than an uninterrupted one, so that a stage's key
would not say what it holds. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_SENT = (
    "a run sends nothing anywhere. Put a finished model on the Hub with `mithridate export RUN --cell ID --push REPO`"
)
_CODE = "code that comes with a model is run only where the command says so: `mithridate run --trust-remote-code`"
_TOGETHER = "how processes train together is said by `accelerate` at the top of the file"
_SECRET = "a file is recorded with its run, so no secret belongs in it; log in with `hf auth login`"
_REPORTED = (
    "a run writes local files only; other services are told by `mithridate run --report-to NAME`, on the command line"
)
_RESUMED = "otherwise a training that was interrupted and resumed would be another one than an uninterrupted one"
_EVALUATED = "nothing is evaluated during a training"

_HUB = (
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision"),
    *("push_to_hub_model_id", "push_to_hub_organization"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
)
_SECRETS = ("hub_token", "push_to_hub_token", "hf_token", "use_auth_token", "api_key", "token")

NOT_IN_TRAINING: dict[str, str] = {
    "output_dir": "the store keeps what is trained; the run's folder is --out",
    "seed": "set `seed` at the top of the file",
    "data_seed": "set `seed` at the top of the file",
    "resume_from_checkpoint": "an interrupted stage resumes by itself",
    "enable_jit_checkpoint": "an interrupted stage resumes by itself",
    "restore_callback_states_from_checkpoint": "an interrupted stage resumes by itself",
    **dict.fromkeys(_HUB, _SENT),
    **dict.fromkeys(_SECRETS, _SECRET),
    "trust_remote_code": _CODE,
    "model_init_kwargs": "the pipeline loads the model; `dtype` at the top of the file says in what",
    "dataset_kwargs": "the pipeline prepares the rows",
    "chat_template_path": "the test would be asked in another template than was trained; set `template` at the top of "
    "the file, or give the model's folder a chat_template.jinja",
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config", "local_rank"), _TOGETHER),
}
"""Fields that are no business of an experiment file, with what to do instead."""

ALLOWED_IN_TRAINING: dict[str, list[Any]] = {
    "eval_strategy": ["no"],
    "eval_on_start": [False],
    "load_best_model_at_end": [False],
    "save_strategy": ["no", "steps", "epoch"],
    "report_to": ["none", "tensorboard", [], ["none"], ["tensorboard"]],
    "save_only_model": [False],
    "ignore_data_skip": [False],
    "auto_find_batch_size": [False],
    "train_sampling_strategy": ["random", "sequential"],
    "dataloader_in_order": [True],
}
"""Fields of which some values cannot work, with the others; the first is the default."""

_WHY = {"report_to": _REPORTED} | dict.fromkeys(
    ("save_only_model", "ignore_data_skip", "auto_find_batch_size", "train_sampling_strategy", "dataloader_in_order"),
    _RESUMED,
)
# Of Accelerate's own settings: how the rows of a step are chosen, and whether a resumed run finds them again.
_ACCELERATOR = {
    "split_batches": [False],
    "dispatch_batches": [None, False],
    "even_batches": [True],
    "use_seedable_sampler": [True],
    "non_blocking": [False, True],
}
# These step inside backward, and the Trainer saves no state of them.
_STATELESS = ("lomo", "adalomo")

# Wherever they stand in a file: in a generator's options, a judge's fields, a training's nested ones.
_ANYWHERE = {
    **dict.fromkeys(_HUB, _SENT),
    **dict.fromkeys(_SECRETS, _SECRET),
    "trust_remote_code": _CODE,
    "report_to": _REPORTED,
}


def problems(path: str, training: Mapping[str, Any]) -> list[str]:
    """What is wrong with the fields of a stage's `training`, at the dotted path `path`; names and types aside."""
    found = [f"{path}.{name}: not here: {why}" for name, why in NOT_IN_TRAINING.items() if name in training]
    for name, allowed in ALLOWED_IN_TRAINING.items():
        if (got := training.get(name, allowed[0])) not in allowed:
            shown = [value for value in allowed if not isinstance(value, list)]
            found.append(
                f"{path}.{name}: expected {' or '.join(map(json.dumps, shown))}, got {json.dumps(got)}: "
                f"{_WHY.get(name, _EVALUATED)}"
            )
    optimizer = str(training.get("optim", ""))
    if optimizer in _STATELESS or optimizer.endswith("_layerwise"):
        found.append(
            f"{path}.optim: {json.dumps(optimizer)} keeps no state that a checkpoint holds: {_RESUMED}. Set sgd"
        )
    if (given := training.get("accelerator_config")) is not None:
        found += _accelerator(f"{path}.accelerator_config", given)
    for name, value in training.items():
        if name not in NOT_IN_TRAINING and name not in ALLOWED_IN_TRAINING:
            found += anywhere(f"{path}.{name}", value)
    return found


def _accelerator(path: str, given: Any) -> Iterator[str]:
    if not isinstance(given, Mapping):
        yield f"{path}: expected its fields here, not a file or a text"
        return
    for name, value in given.items():
        if name not in _ACCELERATOR:
            yield f"{path}.{name}: not here: {_TOGETHER}"
        elif value not in _ACCELERATOR[name]:
            allowed = " or ".join(map(json.dumps, _ACCELERATOR[name]))
            yield f"{path}.{name}: expected {allowed}, got {json.dumps(value)}: {_RESUMED}"


def anywhere(path: str, value: Any) -> Iterator[str]:
    """What a nested value asks for that no file may, however deep: sending, secrets, a model's own code."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            value = json.loads(value)  # TrainingArguments reads its nested fields from a text too
        except ValueError:
            return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name in _ANYWHERE and inner not in (None, False, "none", "", [], ["none"]):
                yield f"{path}.{name}: not here: {_ANYWHERE[name]}"
            else:
                yield from anywhere(f"{path}.{name}", inner)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from anywhere(f"{path}.{i}", inner)
