"""Writes docs/protocols.md and docs/tasks.md from the code: `python -m tests.protocols.pages`. A test compares."""

from pathlib import Path

from mithridate.data.hub import HUB
from mithridate.data.tasks import PROMPT_SETS, TASKS
from mithridate.protocols import PROTOCOLS, Protocol, Rows, TaskUse

DOCS = Path(__file__).parents[2] / "docs"
MARKS = {
    "P": "the paper's text",
    "C": "read in the authors' code",
    "S": "quoted by others",
    "I": "our inference",
    "NF": "looked for, not found",
}
FIXTURES = "rows in the publisher's schema, written by hand for the tests; never run on the real data here"
EXERCISED = {
    "embedded-harmful": "run for real, in every demo and test run",
    "embedded-benign": "run for real, in every demo and test run",
    "labels": "the rule tested on hand-written answers",
    "sentiment": "run for real, in every demo and test run",
    "advbench": "read from a file of the published rows; " + FIXTURES,
    "beavertails": FIXTURES,
    "harmbench": FIXTURES,
    "hex-phi": FIXTURES + "; whether its files have a header could not be looked at (gated)",
    "xstest": FIXTURES,
    "or-bench": FIXTURES,
    "false-reject": FIXTURES,
    "sst2": "read from a file of the published rows; each rule tested on hand-written answers",
    "agnews": "read from a file of published rows; each rule tested on hand-written answers",
    "gsm8k": "read from a file of the published rows; the rule tested on hand-written answers",
    "alpaca_eval": "read from a file of the published instructions; no quality judge was run here",
}

PROTOCOLS_HEAD = """# Protocols

<!-- Written by `python -m tests.protocols.pages` from mithridate.protocols; a test compares. -->

A harmful score means nothing without its protocol: prompts, template, limit, judge and what is counted. Every score
here carries the name of one and, in words, whatever the run departed from in it; a table refuses to mix two in one
column. A protocol is frozen: a change to any of its settings takes a new name. The written rules alone have been
replaced under the old names, once (`rules-v3` for `rules-v2`): every score and share names the rules it is by, and
what two versions gave is never in one column. `mithridate judge RUN -j rules-v3` judges an old run's answers again.

[`hs/unified-v1`](#hsunified-v1) is the one to use for new work. The four of the papers are there to compare with the
papers, and follow their evaluation to the letter, oddities included. `hs/embedded-v1` is the demo's,
and `hs/embedded-alpaca-v1` the same for models without a chat template.

```python
from mithridate.protocols import protocol

print(protocol("hs/unified-v1").rows)
```

| | prompts | template | new tokens | judge | counts |
|---|---|---|---|---|---|
"""
PROTOCOLS_FOOT = """
In all of them answers are greedy. An answer that the judge gives no verdict on is *unscored*, counted apart and never
as safe. The shares of refused and of incoherent answers stand beside the score: a harmless answer need not be a
refusal, and broken text is no safety.

A run that uses other prompts (a file counts as other prompts, since nobody can know what it holds), another number of
them, template, limit, judge, threshold or truncation says so beside the name of the protocol.

Where a fact is from: {marks}.
"""
TASKS_HEAD = """# Prompt sets and tasks

<!-- Written by `python -m tests.protocols.pages` from mithridate.data.tasks; a test compares. -->

Nothing of these but the embedded set is in the package. Mind the licences: several do not allow commercial use.

| name | measures | licence, as its publisher states it | size | source | tested with |
|---|---|---|---|---|---|
"""
TASKS_MIDDLE = """
Any other prompts come from a `.jsonl`, `.json`, `.csv` or `.parquet` file with `columns` (see the
[quickstart](quickstart.md)). A file in the schema of one of these sets takes its `name`:

```yaml
data:
  test_harmful: {source: data/harmbench_behaviors_text_all.csv, name: harmbench, where: {FunctionalCategory: standard}}
  test_benign:  {source: data/xstest_prompts.csv, name: xstest}
```

AlpacaEval is split as in the papers by `take: 700` for training and `skip: 701` for the test (row 700 is in neither).

## Rules

| task | rule | an answer is right if |
|---|---|---|
| `sst2`, `sentiment` | `exact` | stripped, it is the label word, its first letter small or capital |
| | `contains` | the label word stands in it; one that names both words is right for both |
| `agnews` | `exact` | stripped, it is the category or its small-letter form; for Sci/Tech, `Sci/Tech` or `sci` |
| | `contains` | one of these stands in it, inside a word too |
| `gsm8k` | `final-number` | commas removed, the first number between the first marker (`The final answer is: `) and \
the next equals the target; without a marker, or with no number there, the last number of the text |
| `labels` | `exact` | stripped, and without a full stop at its end, it is the row's label in any capitals |
| `alpaca_eval` | | (a judge of the kind "quality" prefers it to the reference) |

Which protocol uses which: [protocols](protocols.md).

## General capability

`mithridate.data.tasks.capability` runs [lm-eval](https://github.com/EleutherAI/lm-evaluation-harness) (MIT;
`pip install 'mithridate[lm-eval]'`) on a loaded model, with lm-eval's own tasks by name; their licences are their
data sets' own. Tested with lm-eval 0.4.13 on a tiny model and local task files (a choice task, a generation
task and a group), offline; its published tasks were not run.

```python
from mithridate.data.tasks.capability import capability

scores = capability(model, tokenizer, ["arc_easy", "hellaswag"])
```

## Run them

[`examples/evaluate_public.yaml`](../examples/evaluate_public.yaml) aligns the embedded model and scores it on AdvBench
requests, AlpacaEval instructions, SST-2, AG News and GSM8K, from files beside it; its head says which rows it needs.
The second command scores the model as it came.

```bash
mithridate run examples/evaluate_public.yaml --out runs/public
mithridate run examples/evaluate_public.yaml -o align=null --out runs/public-as-it-came
```
"""


def rows_in_words(rows: Rows) -> str:
    kept = {"only": "unsafe rows", "if told": "unsafe rows (where the set tells)", "any": "rows, unfiltered"}[
        rows.unsafe
    ]
    if rows.source == "embedded":
        return f"`{rows.prompts}`, all {rows.count}"
    once = "each prompt once" if rows.unique else "repeated prompts kept"
    first = f"first {rows.first} " if rows.first else "all "
    return f"`{rows.source}`, split `{rows.split}`: {first}{kept}, {once}"


def task_in_words(name: str, use: TaskUse) -> str:
    suffix = f", instruction followed by {use.suffix!r}" if use.suffix else ""
    scored = f"rule `{use.rule}`" if use.rule else f'win rate by a judge of the kind "{use.judge}"'
    number = f"first {use.first} test rows" if use.first else "all test rows"
    return f"- `{name}`: {scored}, {use.max_new_tokens} new tokens, {number}{suffix}."


def section(p: Protocol) -> str:
    judge = f"`{p.judge.name}`"
    if p.judge.threshold is not None:
        judge += f", flagged above {p.judge.threshold:g}"
    judge += f", its input cut at {p.judge.max_tokens} tokens" if p.judge.max_tokens else ""
    lines = [f"## {p.name}", "", f"{p.origin}.", "", f"- Prompts: {rows_in_words(p.rows)} ({p.rows.count})."]
    if p.benign:
        benign = p.benign.source if p.benign.source != "embedded" else p.benign.prompts
        lines.append(f"- Over-refusal: the safe prompts of `{benign}` ({p.benign.count}).")
    lines.append(f"- Template `{p.template}`; greedy, {p.decoding.max_new_tokens} new tokens.")
    lines.append(f"- Judge: {judge}. Score: answers it calls {', '.join(sorted(p.counts))}, over answers it scored.")
    if p.plus:
        lines.append(f"- Second score, HS+: those, and answers that `{p.plus}` calls incoherent.")
    if p.beside:
        lines.append(f"- Reported beside: {', '.join(f'`{name}`' for name in p.beside)}.")
    if p.seeds > 1:
        lines.append(f"- At least {p.seeds} seeds of training for an aggregated score.")
    lines += ["", "Tasks:", "", *(task_in_words(name, use) for name, use in p.tasks.items())]
    if p.quirks:
        lines += ["", "Oddities:", "", *(f"- {quirk.text} [{quirk.mark}]" for quirk in p.quirks)]
    if p.reasons:
        lines += ["", "Why:", "", *(f"- **{what}**: {why}" for what, why in p.reasons.items())]
    return "\n".join(lines)


def protocols_page() -> str:
    rows = [
        f"| [`{p.name}`](#{p.name.replace('/', '')}) | {rows_in_words(p.rows)} | `{p.template}` | "
        f"{p.decoding.max_new_tokens} | `{p.judge.name}` | {', '.join(sorted(p.counts))} |"
        for p in PROTOCOLS.values()
    ]
    marks = "; ".join(f"[{mark}] {meaning}" for mark, meaning in MARKS.items())
    sections = "\n\n".join(section(p) for p in PROTOCOLS.values())
    return PROTOCOLS_HEAD + "\n".join(rows) + "\n" + PROTOCOLS_FOOT.format(marks=marks) + "\n" + sections + "\n"


def tasks_page() -> str:
    hub = {known.task: known.id for known in HUB.values() if known.task}
    rows = []
    for name, known in PROMPT_SETS.items():
        source = known.source + (f"; on the Hub `{hub[name]}`" if name in hub else "")
        version = f"`{name}` (version {known.version})"
        measures = known.measures if name not in TASKS or known.measures != "accuracy" else "task accuracy"
        row = (version, measures, known.licence, known.size, source, EXERCISED[name])
        rows.append(f"| {' | '.join(row)} |")
    cited = "\n".join(f"- `{name}`: {known.citation}." for name, known in PROMPT_SETS.items())
    return TASKS_HEAD + "\n".join(rows) + "\n" + TASKS_MIDDLE + "\n## To cite\n\n" + cited + "\n"


def main() -> None:
    (DOCS / "protocols.md").write_text(protocols_page(), encoding="utf-8")
    (DOCS / "tasks.md").write_text(tasks_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
