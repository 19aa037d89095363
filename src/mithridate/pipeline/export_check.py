"""Whether an exported model answers like the one that was measured: the same prompts, the same text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from transformers import AutoModelForCausalLM

from mithridate.errors import MithridateError
from mithridate.evaluation import answers
from mithridate.experiment.methods import around_prompts
from mithridate.generation.hf import Transformers
from mithridate.models import load_model
from mithridate.models.memory import to_gpu
from mithridate.pipeline.assembly import load
from mithridate.protocols import protocol

if TYPE_CHECKING:
    from mithridate.pipeline.stages import ExperimentStages


def check_export(
    chain: ExperimentStages, upto: str, folder: Path, rows: Sequence[dict[str, Any]], prompts: int
) -> str:
    """Asks the model in `folder`, as plain transformers or PEFT loads it, the first prompts of the measurement again.

    Where an answer is not the stored one, the measured model itself is asked once more, in the same batch: bfloat16,
    another batch or another generator can move a rounding. Where that differs too, the exported model is another one.
    A rounding moves an answer on its way, seldom at its first word: where most begin otherwise, it is none.

    Args:
        upto: the stage whose model was exported.
        rows: the records of that model from the end of its cell.
        prompts: how many of the harmful prompts, and of the benign ones, are asked.

    Returns:
        What was found, in words.

    Raises:
        MithridateError: the answers differ. The folder is then called `NAME.differs`.
    """
    stored = {_place(row): row["answer"] for row in rows}
    found = _answers(chain, upto, _loaded(chain, folder), prompts)
    asked = [row for row in found if _place(row) in stored]
    if not asked:
        return "not checked: the records have none of the experiment's prompts"
    other = [row for row in asked if row["answer"] != stored[_place(row)]]
    if not other:
        return f"checked: {len(asked)} prompts have the answers that were measured"
    again = {_place(row): row["answer"] for row in _answers(chain, upto, load(chain, upto), prompts)}
    differing = [row for row in other if row["answer"] != again[_place(row)]]
    begun = [row for row in other if row["answer"].split()[:1] != stored[_place(row)].split()[:1]]
    if not differing and len(begun) > max(1, len(asked) // 2):
        raise MithridateError(
            f"{folder}: the measured model, asked again, gives {len(begun)} of {len(asked)} prompts answers that "
            f"differ from the stored ones from their first word on (such as {begun[0]['set']} {begun[0]['id']}), "
            f"which rounding does not do. It is now {_aside(folder)}: do not ship it. Run the experiment again: the "
            "libraries or the hardware may have changed since"
        )
    if not differing:
        return (
            f"checked: {len(asked)} prompts; {len(other)} answers are not those that were stored, and the measured "
            "model gives these too when it is asked again so (rounding in other batches)"
        )
    if chain.context.base.quantization and not (folder / "adapter_config.json").exists():
        return (
            f"checked: {len(differing)} of {len(asked)} prompts have other answers than were measured. The measured "
            "model computes in its quantised base's precision, the exported one is dequantised"
        )
    raise MithridateError(
        f"{folder}: the exported model gives other answers than were measured to {len(differing)} of {len(asked)} "
        f"prompts (such as {differing[0]['set']} {differing[0]['id']}). It is now {_aside(folder)}: do not ship it. "
        "Export it merged or as an adapter instead, and report this"
    )


def _aside(folder: Path) -> Path:
    """Renames the folder of a model that is not to be shipped. Returns its new place."""
    aside = next(path for i in count() if not (path := folder.with_name(f"{folder.name}.differs{i or ''}")).exists())
    return folder.rename(aside)


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    sample = row.get("sample")
    return row["set"], row["id"], row["prompt"], 0 if sample is None or sample != sample else int(sample)


def _answers(chain: ExperimentStages, upto: str, model: Any, prompts: int) -> list[dict[str, Any]]:
    settings, parts = chain.experiment.evaluate, chain.context.roles.parts()
    sets = {name: parts[role][: settings.limit][:prompts] for name, role in chain.sets().items() if ":" not in name}
    fields = chain.experiment.evaluate.generator.get("transformers") or {}
    asked = Transformers(model, chain.tokenizer, **fields)
    sampling = settings.sampling(chain.experiment.seed)
    around = around_prompts(chain.experiment, upto)
    try:
        return answers(asked, sets, protocol(settings.protocol), around=around, sampling=sampling)
    finally:
        asked.close()


def _loaded(chain: ExperimentStages, folder: Path) -> Any:
    context = chain.context
    more: Any = {"dtype": context.torch_dtype, "local_files_only": True, "trust_remote_code": context.base.remote_code}
    if (folder / "adapter_config.json").exists():
        own = folder / "base"
        base: Any = (
            AutoModelForCausalLM.from_pretrained(own, **more)
            if own.exists()
            else load_model(context.base, context.torch_dtype)
        )
        model: Any = PeftModel.from_pretrained(base, str(folder))
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, **more)
    quantised = context.base.quantization and (folder / "adapter_config.json").exists()
    return (model if quantised else to_gpu(model, str(folder))).eval()
