"""How many processes train together: what an Accelerate configuration says, and what is left to the machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from mithridate.environment import gpu_problem
from mithridate.errors import InputError, UnsupportedSetup

if TYPE_CHECKING:
    from mithridate.experiment.model import Experiment

SHIPPED = {path.stem: path for path in (Path(__file__).parents[1] / "resources" / "accelerate").glob("*.yaml")}


def with_processes(experiment: Experiment, base: Path) -> Experiment:
    """The experiment with what it leaves to the machine and the file: the file's whole path (it is looked for in
    `base`) and the number of processes.

    Raises:
        InputError: no such file, or no number of processes.
        UnsupportedSetup: the file asks for something else than DDP or FSDP2 on one machine.
    """
    name = experiment.accelerate
    if name == "none":
        return replace(experiment, processes=1)
    file = base / Path(name).expanduser()
    if name not in SHIPPED:
        if not file.is_file():
            known = ", ".join(sorted(SHIPPED))
            raise InputError(f"accelerate: no such file {file}; give one, or one of none, {known}")
        name = str(file)
    raw, _ = read_accelerate(name)
    processes = experiment.processes
    if processes is None:
        import torch

        processes = int(raw.get("num_processes") or torch.cuda.device_count())
    if processes < 1:
        why = gpu_problem() or "torch sees no GPU here"
        raise InputError(
            f"processes: {why}, so the number of GPUs does not say how many. Set processes: 2 (say), or "
            "accelerate: none"
        )
    return replace(experiment, accelerate=name, processes=processes)


def read_accelerate(accelerate: str) -> tuple[dict[str, Any], Literal["ddp", "fsdp2"]]:
    """An Accelerate configuration, and its kind."""
    file = SHIPPED.get(accelerate, Path(accelerate))
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"accelerate: {file} cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(raw, dict) or "distributed_type" not in raw:
        raise InputError(f"accelerate: {file} is no Accelerate configuration (it has no distributed_type)")
    kind, fsdp = str(raw["distributed_type"]), raw.get("fsdp_config") or {}
    number = raw.get("num_processes")
    if number is not None and (not isinstance(number, int) or number < 1):
        raise InputError(f"accelerate: {file}: num_processes: expected at least 1, got {number}")
    if (raw.get("num_machines") or 1) > 1:
        raise UnsupportedSetup(
            f"accelerate: {file} is for several machines, and the pipeline starts processes on its own machine only.",
            "start a script of yours that uses DefenseTrainer on each machine (docs/scale.md shows how).",
        )
    if kind not in ("MULTI_GPU", "FSDP"):
        raise UnsupportedSetup(
            f"accelerate: {file}: distributed_type {kind} is not supported.", "use MULTI_GPU (DDP) or FSDP."
        )
    if kind == "FSDP" and str(fsdp.get("fsdp_version", 1)) != "2":
        raise UnsupportedSetup(
            f"accelerate: {file} asks for FSDP version {fsdp.get('fsdp_version', 1)} (1 is what is meant where none "
            "is given).",
            "set fsdp_version: 2 in its fsdp_config, or use the shipped file: accelerate: fsdp2.",
        )
    if kind == "FSDP" and fsdp.get("fsdp_cpu_ram_efficient_loading", True) is not False:
        raise UnsupportedSetup(
            f"accelerate: {file}: with fsdp_cpu_ram_efficient_loading only the first process loads the weights, and "
            "adapters are merged into them before they are sharded.",
            "set fsdp_cpu_ram_efficient_loading: false.",
        )
    if kind == "FSDP" and fsdp.get("fsdp_offload_params", False) is not False:
        raise UnsupportedSetup(
            f"accelerate: {file}: with fsdp_offload_params weights are copied to GPUs, on which it was not tried.",
            "set fsdp_offload_params: false.",
        )
    if kind == "FSDP" and fsdp.get("fsdp_activation_checkpointing", False) is not False:
        raise UnsupportedSetup(
            f"accelerate: {file}: fsdp_activation_checkpointing is not the Trainer's, which defenses know of.",
            "set fsdp_activation_checkpointing: false, and training.activation_checkpointing: true (or "
            "gradient_checkpointing, as older versions of transformers call it).",
        )
    if kind == "FSDP" and str(fsdp.get("fsdp_state_dict_type", "")) != "FULL_STATE_DICT":
        raise UnsupportedSetup(
            f"accelerate: {file}: only whole state dicts are saved as models.",
            "set fsdp_state_dict_type: FULL_STATE_DICT.",
        )
    return raw, "fsdp2" if kind == "FSDP" else "ddp"
