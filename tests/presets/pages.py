"""Writes docs/presets.md from the preset files: `python -m tests.presets.pages`. A test compares."""

import json
from pathlib import Path

from mithridate.studies.presets import NAMES, Preset, Sourced, preset
from mithridate.studies.presets.book import MARKS

PAGE = Path(__file__).parents[2] / "docs" / "presets.md"

HEAD = """# Presets

<!-- Written by `python -m tests.presets.pages` from recipes/presets/*.yaml; a test compares. -->

The experiments of the four papers, one of our own under which all defenses meet, and the trivial baselines at the
settings that they are known from, as files in which no value stands without its source. Marks: {marks}.

```bash
mithridate reproduce                                                   # lists them
mithridate reproduce booster-2025 --model path/to/model --dry-run      # what would be run, with what deviations
mithridate reproduce booster-2025 --model path/to/model --scale 0.05 \\
    --data alignment=refusals.jsonl --data "task={{source: train.csv, name: sst2, test: test.csv}}"
mithridate reproduce booster-2025 --model smollm2-135m --embedded --scale 0.05 -o seed=0 --arm sft --arm booster
mithridate reproduce unified-v1 --model path/to/model --dry-run
```

It runs each arm at each place of the paper's table, and the undefended run in an arm's own topology where the paper
has none, and prints the paper's numbers with their marks beside ours with 95 % intervals, then every deviation:
another model, other data, fewer rows, an override, whatever the run departs from its [protocol](protocols.md) in.
The run's folder has the comparison as `reproduce.md` and `reproduce.json`.

- `--scale 0.05` takes 5 % of the rows of each role whose number the preset gives, 5 % of the attack's rows, and at
  most 5 % of the protocol's number of prompts from each test set. Epochs stay, so there are fewer optimizer steps.
  What a method is set to never changes: a case that is then too small for it (fewer steps than one cycle of Lisa),
  or that would have no harmful row, is left out, which is said.
- Nothing of the papers' data is shipped. The presets name the public sets (their licences: [tasks](tasks.md)),
  which are read from the Hub or its cache; without them it stops at once and says what is missing. `--data
  ROLE=FILE` gives a file in place of one, with the preset's number of rows; `--data "ROLE={{source: ..., take:
  ...}}"` is taken as it is.
- `--embedded` is a rehearsal on the [embedded data](embedded_data.md), in the model's chat template: it shows that
  all of it runs, and nothing about the paper's numbers.

**What stands between this and the papers' numbers, always.** Prompts are parted between the roles by a digest, and
not by the papers' row numbers, because roles may not share a prompt here. Seeds are those of other libraries, and
two passes that are compared see the same dropout masks. None of the presets was run at its full size by this
project: the papers' numbers are theirs.

"""


def shown(value) -> str:
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def rows(values: dict[str, Sourced]) -> list[str]:
    lines = ["| field | value | mark | source |", "|---|---|---|---|"]
    return lines + [f"| `{p}` | {shown(v.value)} | {v.mark} | {v.source} |" for p, v in values.items()]


def section(known: Preset) -> str:
    lines = [f"## {known.name}", "", f"{known.title}."]
    if known.paper:
        lines[-1] += f" Paper: {known.paper}; code: {known.code}."
    lines += ["", *rows(known.fields)]
    for arm, own in known.variants.items():
        lines += ["", f"Arm `{arm}`" + (":" if own else ": no defense.")]
        lines += ["", *rows(own)] if own else []
    lines += ["", "Varied:", "", *rows(known.sweep)]
    if known.tuning:
        lines += tuning(known)
    if known.numbers:
        lines += numbers(known)
    lines += ["", "What differs between paper, released scripts and this:", ""]
    return "\n".join([*lines, *(f"- {note.text} [{note.mark}]" for note in known.differences)])


def tuning(known: Preset) -> list[str]:
    chosen = known.tuning
    limits = {name: getattr(chosen, name) for name in ("max_accuracy_loss", "max_benign_refusal")}
    places = ", ".join(f"{path} = {value}" for path, value in chosen.at.items())
    lines = [
        "",
        "Each defense's settings are chosen in each topology, on validation parts, by one rule: of those within the "
        f"limits below the lowest harmful score, else the one that exceeds them least. Tried at {places}:",
        "",
        "| arm | tries |",
        "|---|---|",
    ]
    for arm, tries in chosen.tries.items():
        said = [", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in one.items()) for one in tries]
        lines.append(f"| `{arm}` | {'; '.join(said)} |")
    return [*lines, "", *rows(limits)]


def numbers(known: Preset) -> list[str]:
    found = known.numbers
    lines = [
        "",
        f"The paper's numbers [{found.mark}]: {found.table}. Percent; in brackets the mean that it prints.",
        "",
    ]
    lines += [f"| | {' | '.join(f'{at:g}' for at in found.at)} | mean |", f"|{'---|' * (len(found.at) + 2)}"]
    for measure in ("harmful_score", "accuracy"):
        for arm, mean in found.means[measure].items():
            cells = getattr(found, measure).get(arm) or [None] * len(found.at)
            said = ["" if value is None else f"{100 * value:.4g}" for value in cells]
            lines.append(f"| {measure.replace('_', ' ')}, {arm} | {' | '.join(said)} | [{100 * mean:.4g}] |")
    return lines


def page() -> str:
    marks = "; ".join(f"**{mark}** {meaning}" for mark, meaning in MARKS.items())
    return HEAD.format(marks=marks) + "\n\n".join(section(preset(name)) for name in NAMES) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
