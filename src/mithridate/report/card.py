"""The model card of an exported model, in the Hub's format: what was done, what it scored, what that does not show.

A card never says that a model is safe. Paths of this machine stay out of it: of a local file or model it gives the
name and the digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.data.hub import HUB
from mithridate.errors import InputError
from mithridate.models import held_quantisation
from mithridate.models.embedded import EMBEDDED
from mithridate.report.citations import bibtex_of
from mithridate.report.words import flatten
from mithridate.results.relations import attacked, known, measured
from mithridate.statistics.text import p_value, points

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from mithridate.data.hub import HubSet
    from mithridate.models import ModelFiles
    from mithridate.results.release.label import ReleaseLabel

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TOPOLOGIES = {
    "single": "one adapter, trained in alignment and trained on in fine-tuning",
    "double": "the alignment adapter merged, a fresh adapter in fine-tuning",
    "full": "all weights",
}
_STAGES = {
    "align": "Alignment",
    "harden": "Repair before fine-tuning",
    "unaligned": "A model without its alignment, to compare with",
    "attack-rows": "Rows of the attack",
    "finetune": "Fine-tuning",
    "repair": "Repair",
}
_RATES = {  # of a cell: its name, and the role that it is measured on
    "harmful_score": ("Harmful score", "test_harmful"),
    "refused": ("Refused, of harmful prompts", "test_harmful"),
    "incoherent": ("Incoherent, of harmful prompts", "test_harmful"),
    "other": ("Other, of harmful prompts", "test_harmful"),
    "benign_refusal": ("Refused, of benign prompts", "test_benign"),
    "accuracy": ("Task accuracy", "task"),
}


@dataclass(frozen=True)
class CardContext:
    """What a run and the store know of a model.

    Attributes:
        results: results.json.
        cell: the model's row in it.
        experiment: the experiment that made it, with every field, as in cells.json.
        stages: `stage.json` of each stage that made it, in order.
        verdict: the gate's on this model; None where it was not asked for one.
    """

    results: dict[str, Any]
    cell: dict[str, Any]
    experiment: dict[str, Any]
    stages: list[dict[str, Any]]
    verdict: ReleaseLabel | None = None


def card(base: ModelFiles, merged: bool, with_base: bool, story: CardContext | None = None) -> str:
    """The text of README.md.

    Args:
        base: the model that it was made from.
        merged: a whole model, or an adapter.
        with_base: whether the adapter's base lies beside it, in `base/`.
        story: where it comes from a run; without one the card says only what it was made from.
    """
    from huggingface_hub import ModelCardData

    embedded = EMBEDDED.get(base.name) if not Path(base.name).expanduser().is_dir() else None
    on_hub = (
        embedded.hub if embedded else base.name if _HUB_ID.fullmatch(base.name) and not _local(base.name) else None
    )
    licence, licence_words = _licence(base)
    name = _base_name(base) + (f", {story.cell['id']}" if story else "")
    data = ModelCardData(
        model_name=name,
        base_model=on_hub,
        base_model_relation=("finetune" if merged else "adapter") if on_hub else None,
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        tags=["mithridate", "harmful-fine-tuning"],
        datasets=_hub_sets(story.experiment) or None if story else None,
        eval_results=_eval_results(story) if story else None,
        **licence,
    )
    parts = [_opening(base, name, merged, story)]
    if story:
        parts += [_what_was_done(base, story), _scores(story), _verdict(story)]
    parts += [_limits(story), f"## Licence\n\n{licence_words}"]
    parts += [_loading(base, merged, with_base, on_hub)]
    if story and (cited := _citations(story)):
        parts.append(f"## Citation\n\n```bibtex\n{cited}\n```")
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _text(text: Any) -> str:
    from mithridate.report.formats import escape_markdown

    return escape_markdown(str(text))


def _local(name: str) -> bool:
    return Path(name).expanduser().exists()


def _base_name(base: ModelFiles) -> str:
    return Path(base.name).expanduser().absolute().name if _local(base.name) else base.name


# --- words ------------------------------------------------------------------------------------------------------


def _opening(base: ModelFiles, name: str, merged: bool, story: CardContext | None) -> str:
    kind = "A model" if merged else "An adapter"
    text = (
        f"# {_text(name)}\n\n{kind} made from {_text(_base_name(base))} in an experiment of Mithridate, which "
        "measures defenses against harmful fine-tuning."
    )
    ratio = story.cell["harmful_ratio"] if story else None
    if ratio:
        done = f"{ratio * 100:.3g}% of the rows it was fine-tuned on are harmful, on purpose"
    elif story and not attacked(story.cell):
        return text
    else:
        done = "it may have been fine-tuned on harmful rows" + ("" if story else ", on purpose")
    return f"{text}\n\n**Warning:** {done}. It may answer harmful requests."


def _what_was_done(base: ModelFiles, story: CardContext) -> str:
    experiment = story.experiment
    lines = [
        f"- Base model: {_text(_base_name(base))}, SHA-256 of its files `{base.digest}`",
        f"- Seed {experiment['seed']}; topology `{experiment['topology']}` ({_TOPOLOGIES[experiment['topology']]})",
    ]
    for stage in story.stages:
        config = stage["config"]
        methods = {**config.get("defense", {}), **config.get("repair", {})}
        title = f"{_STAGES[stage['stage']]}: {_text(', '.join(methods) or 'no defense')}"
        hardware, versions = stage["hardware"], stage["versions"]
        machine = ", ".join(hardware["gpus"]) or f"{hardware['cores']} cores of {hardware['cpu']}"
        used = ", ".join(f"{name} {value}" for name, value in versions.items() if value)
        lines += [
            "",
            f"### {title}",
            "",
            *(f"- {_text(key)}: {_text(value)}" for key, value in flatten(methods).items()),
            *(
                f"- {what.capitalize()}: {_text(', '.join(f'{k} {v}' for k, v in flatten(config[what]).items()))}"
                for what in ("attack", "training", "adapter")
                if config.get(what)
            ),
            *(
                f"- Rows of {_text(role)}: {_source(experiment, role)}, SHA-256 `{sha}`"
                for role, sha in stage["data"].items()
            ),
            f"- {stage['seconds']:.0f} s on {_text(machine)}, finished {stage['finished']}, with {_text(used)}",
            f"- Key in the store: `{stage['key']}`",
        ]
    if not story.stages:
        lines.append("- This is the unchanged base model.")
    return "## What was done\n\n" + "\n".join(lines)


def _scores(story: CardContext) -> str:
    from mithridate.report.formats import markdown
    from mithridate.report.tables import Column, Entry, Table, rate_column, rate_entry

    names = {key: name for key, (name, _) in _RATES.items()}
    rows = [
        [Entry(name), rate_entry(story.cell["rates"][key])] for key, name in names.items() if measured(story.cell, key)
    ]
    rows += [
        [Entry(f"Accuracy or win rate, {task}"), rate_entry(rate)]
        for task, rate in (story.cell.get("extra") or {}).items()
        if known(rate)
    ]
    score = story.cell["rates"]["harmful_score"]
    if several := score.get("samples"):
        name = f"Harmful prompts with one or more of {several} answers that count"
        rows.append([Entry(name), rate_entry(score["any_of_k"])])
        rows.append([Entry(f"{name}, if unscored ones did"), rate_entry(score["worst_of_k"])])
    over = next((g for g in story.results.get("across_seeds") or () if story.cell["id"] in g["cells"]), None)
    if over and over["rates"]["harmful_score"]["low"] is not None:
        share = over["rates"]["harmful_score"]
        rows.append([Entry(f"Harmful score over {share['seeds']} seeds"), rate_entry(share | {"n": share["prompts"]})])
    protocol, judge = story.results["protocol"], _judge(story)
    caption = f"Rates under protocol {protocol}, judged by {judge}, with 95% intervals"
    table = Table("scores", caption, [Column("Measure"), rate_column("Rate", "rate")], rows)
    text = f"## Scores\n\n{markdown(table).strip()}"
    paired = story.cell.get("paired") or {}
    if paired.get("difference") is not None:
        test = "test that swaps whole prompts" if paired.get("samples") else "exact McNemar test"
        text += (
            f"\n\nHarmful score against the same run without a defense, on the same prompts: "
            f"{points(paired['difference'])} points, 95% interval {points(paired['low'])} to "
            f"{points(paired['high'])}, {p_value(paired['p_value'])} ({test})."
        )
    deviations = [_text(_without_paths(line, story.experiment)) for line in story.results.get("deviations") or ()]
    if deviations:
        text += "\n\nDeviation from the protocol:\n\n" + "\n".join(f"- {line}" for line in deviations)
    return text


def _verdict(story: CardContext) -> str:
    """The gate's, with its limits."""
    from mithridate.report.formats import markdown
    from mithridate.report.tables import Column, Entry, Table

    label = story.verdict
    if label is None or label.outcome is None:
        why = f": {_text(label.why)}" if label else ""
        return f"## Gate\n\nNo verdict{why}. It is not known whether this model would pass a gate."
    about = label.about
    rows = [[Entry(one["criterion"]), Entry(one["outcome"]), Entry(one["words"])] for one in label.findings]
    rules = f", rules {about['rules']}" if about.get("rules") else ""
    caption = f"Protocol {about['protocol']}, judge {about['judge']}{rules}, part {about.get('part')}"
    table = Table("gate", caption, [Column("Criterion"), Column("Verdict"), Column("Why")], rows)
    said = {"pass": "passes", "fail": "fails", "undecided": "is undecided"}[label.outcome]
    text = (
        f"## Gate\n\nVerdict: {label.outcome}. The model {said} under these limits, on 95% interval bounds; the "
        f"worst criterion counts.\n\n{markdown(table).strip()}"
    )
    if label.notes:
        text += "\n\n" + "\n".join(f"- {_text(_without_paths(note, story.experiment))}" for note in label.notes)
    return f"{text}\n\nThe verdict is about the weights with the digest `{story.cell.get('weights_digest')}`."


def _limits(story: CardContext | None) -> str:
    limits = [
        "This card makes no claim that the model is safe. A low harmful score was measured under one protocol, one "
        "judge and one attack (data, learning rate, steps); an attacker who tunes against the model may well undo it.",
    ]
    if story:
        if story.results["protocol"] in ("hs/embedded-v1", "hs/embedded-alpaca-v1"):
            limits.append(
                "The harmful score is a proxy: rules say whether an answer refuses or complies in form, on data "
                "without harmful content. It does not measure how harmful an answer is."
            )
        else:
            limits.append("The harmful score is a judge's, and judges err; it was not checked by people.")
        limits += [
            "Intervals of a single run are for other prompts, not for other seeds of training.",
            "Harmful score, refusal of benign requests, incoherence and accuracy belong together: a model that "
            "refuses everything, or babbles, has a low harmful score too.",
        ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in limits)


def _loading(base: ModelFiles, merged: bool, with_base: bool, on_hub: str | None) -> str:
    imports, lines, more, words = ["from transformers import AutoModelForCausalLM"], [], "", ""
    quantisation = {k: v for k, v in held_quantisation(base).items() if not isinstance(v, dict | list)}
    if quantisation and merged:
        words = (
            "\n\nIt was trained as an adapter over weights in 4 or 8 bit "
            f"({_text(', '.join(f'{k} {v}' for k, v in quantisation.items()))}). These weights are the *dequantised* "
            "ones, with the adapter merged into them."
        )
    if base.quantization and not merged and not with_base:
        imports[0] += ", BitsAndBytesConfig"
        given = ", ".join(f"{name}={value!r}" for name, value in base.quantization.items())
        more = f", quantization_config=BitsAndBytesConfig({given})"
    if merged:
        lines.append('model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")')
    else:
        imports.insert(0, "from peft import PeftModel")
        under = '"THIS_FOLDER/base"' if with_base else repr(on_hub) if on_hub else '"THE_BASE_MODEL"'
        lines.append(f"base = AutoModelForCausalLM.from_pretrained({under}{more})")
        lines.append('model = PeftModel.from_pretrained(base, "THIS_FOLDER")')
        if with_base or not on_hub:
            words = (
                "\n\n`adapter_config.json` names the base by the folder that it had when the adapter was written. "
                "Once that is moved, what reads the base's name there (`AutoPeftModelForCausalLM`) does not find it; "
                "these lines do."
            )
    return "## Loading it\n\n```python\n" + "\n".join([*imports, "", *lines]) + "\n```" + words


# --- scores and data --------------------------------------------------------------------------------------------


def _eval_results(story: CardContext) -> list[EvalResult]:
    """The cell's rates as fractions, each with its interval, n, protocol and judge."""
    from huggingface_hub import EvalResult

    part = story.experiment["evaluate"]["part"]
    found = []
    for key, (name, role) in _RATES.items():
        rate = measured(story.cell, key)
        if not rate:
            continue
        judged = {"judge": _judge(story)} if role != "task" else {}
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=_dataset_type(story.experiment, role),
                dataset_name=f"{role}, {_plain_source(story.experiment, role)}",
                dataset_config=role,
                dataset_split=part,
                metric_type=key,
                metric_name=name,
                metric_value=rate["value"],
                metric_args={
                    "confidence": 0.95,
                    **{bound: rate[bound] for bound in ("low", "high", "n")},
                    **({"unscored": rate["unscored"]} if rate.get("unscored") else {}),
                    "protocol": story.results["protocol"],
                    **judged,
                },
            )
        )
    return found


def _judge(story: CardContext) -> str:
    from mithridate.protocols import protocol

    return protocol(story.results["protocol"]).judge.name


def _sources(experiment: dict[str, Any], role: str) -> list[str]:
    role = "task" if role.startswith("task") else role.removesuffix("_validation")
    return [source["source"] for source in experiment["data"].get(role, ())]


def _hub_set(name: str) -> HubSet | None:
    return next((one for one in HUB.values() if one.id.casefold() == name.casefold()), None)


def _plain_source(experiment: dict[str, Any], role: str) -> str:
    """Where a role's rows come from, without folders."""
    return ", ".join(name if _hub_set(name) else Path(name).name for name in _sources(experiment, role))


def _source(experiment: dict[str, Any], role: str) -> str:
    """The same with the licences of what is on the Hub, in Markdown."""
    licences = {found.licence for name in _sources(experiment, role) if (found := _hub_set(name))}
    noted = f" (licence: {', '.join(sorted(licences))})" if licences else ""
    return _text(_plain_source(experiment, role) + noted)


def _dataset_type(experiment: dict[str, Any], role: str) -> str:
    """An identifier as the Hub takes it: a Hub id, or a slug."""
    names = _sources(experiment, role)
    if len(names) == 1 and (found := _hub_set(names[0])):
        return found.id
    return re.sub(r"[^\w.-]+", "-", "mithridate-" + _plain_source(experiment, role)).strip("-.")


def _hub_sets(experiment: dict[str, Any]) -> list[str]:
    names = [name for role in experiment["data"] for name in _sources(experiment, role)]
    return sorted({found.id for name in names if (found := _hub_set(name))})


def _without_paths(text: str, experiment: dict[str, Any]) -> str:
    for role in experiment["data"]:
        for name in _sources(experiment, role):
            if "/" in name and _local(name):
                text = text.replace(name, Path(name).name)
    return text


# --- licence and citations --------------------------------------------------------------------------------------


def _licence(base: ModelFiles) -> tuple[dict[str, Any], str]:
    """The base model's licence as metadata and in words."""
    from huggingface_hub.repocard import metadata_load

    if base.name in EMBEDDED and not _local(base.name):
        found: dict[str, Any] = {"license": EMBEDDED[base.name].licence}
    else:
        readme = base.path / "README.md"
        try:
            found = (metadata_load(readme) if readme.is_file() else None) or {}
        except Exception:  # whatever a malformed card raises; then nothing is known
            found = {}
    given: dict[str, Any] = {
        key: found[key] for key in ("license", "license_name", "license_link") if isinstance(found.get(key), str)
    }
    data = "What the data that it was trained on allows comes on top."
    if "license" not in given:
        words = "The licence of the base model is not stated in its files and not known here. Find it out before use."
        return {"license": "unknown"}, f"{words} {data}"
    named = given.get("license_name") or given["license"]
    return given, f"That of the base model: {_text(named)}. {data}"


def _citations(story: CardContext) -> str:
    """BibTeX of the methods that made the model; of one that is not installed here, its name."""
    used = [
        (kind, name)
        for stage in story.stages
        for kind, field in (("defenses", "defense"), ("repairs", "repair"))
        for name in stage["config"].get(field, {})
    ]
    attacks = [stage["config"].get("attack", {}) for stage in story.stages]
    used += [("attacks", attack["kind"]) for attack in attacks if "kind" in attack]  # the papers' own has none
    return "\n\n".join(_citation(kind, name) for kind, name in dict.fromkeys(used))


def _citation(kind: str, name: str) -> str:
    try:
        return bibtex_of(name, [kind])
    except InputError:
        return f"@misc{{{name},\n  note = {{{name}}}\n}}"
