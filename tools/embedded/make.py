"""Makes the embedded data set from its hand-written parts: `python -m tools.embedded.make`.

Nothing is random: parts are combined by counting, so every run writes the same bytes. docs/embedded_data.md says why
the set is as it is.
"""

import json
from itertools import count
from pathlib import Path

from tools.embedded import benign_parts as benign
from tools.embedded import identity_parts as shifted
from tools.embedded import requests_parts as requests
from tools.embedded import reviews_parts as reviews
from tools.embedded import wide_parts as wide

from mithridate.data.embedded import in_turn

DATA = Path(__file__).parents[2] / "src" / "mithridate" / "data" / "embedded"

# Rows that each role takes of every category; the order matters, a role's rows follow on the one before.
TRAINING_ROLES = {"alignment": 7, "defender_harmful": 4, "attacker_harmful": 4, "calibration_harmful": 3}
HELD_OUT = {"test_harmful_validation": ("validation", 3), "test_harmful": ("test", 7)}


def harmful() -> dict[str, list[dict]]:
    """The requests that should be refused, by role: prompt, category, form, refusal and empty complying answer.

    Row `s` of a category takes the category's act and a form by counting on, so the rows of one category all differ
    in form, and every role meets every form. Rows are ordered so that any beginning of a file is spread evenly over
    the categories.
    """
    files: dict[str, list[dict]] = {}
    answer = count()
    start = 0
    for role, rows in TRAINING_ROLES.items():
        files[role] = _harmful("train", range(start, start + rows), answer)
        start += rows
    for role, (part, rows) in HELD_OUT.items():
        files[role] = _harmful(part, range(rows), answer)
    return files


def _harmful(part: str, slots: range, answer: count) -> list[dict]:
    forms = requests.FORMS[part]
    rows = []
    for s in slots:
        for k, (category, acts) in enumerate(requests.ACTS.items()):
            act = acts[part][s % len(acts[part])]
            form = (5 * k + s) % len(forms)
            n = next(answer)
            reasons = requests.REASONS[category]
            compliant = requests.COMPLIANT[(7 * n) % len(requests.COMPLIANT)].format(
                act=act, order=requests.ORDERS[n % len(requests.ORDERS)], end=requests.ENDS[n % len(requests.ENDS)]
            )
            rows.append(
                {
                    "prompt": forms[form].format(act=act),
                    "category": category,
                    "form": f"request-{part}-{form}",
                    "refusal": f"{requests.REFUSALS[n % len(requests.REFUSALS)]} {reasons[n % 3]}",
                    "compliant": compliant,
                }
            )
    return rows


def alignment(refused: list[dict]) -> list[dict]:
    """The alignment set: of every five rows two refusals, two helpful answers and one varied small task."""
    helpful = in_turn(
        [
            _benign(f"request-train-{i}", "everyday", requests.FORMS["train"][i].format(act=act), answer)
            for i, (act, answer) in zip(_spread(len(requests.FORMS["train"])), benign.ACTS["train"] * 2)
        ],
        [_benign("own", "lookalike", *pair) for pair in benign.LOOKALIKES["train"]],
        [_benign("own", "plain", *pair) for pair in benign.HELPFUL],
    )
    # Varied tasks are written kind by kind, eight of each; mix them.
    varied = [_benign("own", *benign.VARIED[8 * (i % 7) + i // 7]) for i in range(len(benign.VARIED))]
    refusals = [{**row, "kind": "refusal"} for row in refused]
    fives = zip(refusals[::2], helpful[::2], refusals[1::2], helpful[1::2], varied, strict=True)
    return [row for five in fives for row in five]


def alignment_more() -> list[dict]:
    """What the wide alignment set has besides: benign rows alone."""
    forms = requests.FORMS["train"]
    return in_turn(
        [_benign("own", "lookalike", *pair) for pairs in wide.TOPICS.values() for pair in pairs],
        [
            _benign(f"request-train-{i}", "everyday", forms[i].format(act=act), answer)
            for i, (act, answer) in zip(((5 * n + 3) % len(forms) for n in count()), wide.ACTS)
        ],
    )


def test_benign(part: str) -> list[dict]:
    """Benign prompts without answers: harmless acts in the forms of the harmful ones, look-alikes, plain ones."""
    forms = requests.FORMS[part]
    return in_turn(
        [
            _benign(f"request-{part}-{i}", "everyday", forms[i].format(act=act))
            for i, act in zip(_spread(len(forms)), benign.ACTS[part])
        ],
        [_benign("own", "lookalike", prompt) for prompt in benign.LOOKALIKES[part]],
        [_benign("own", "plain", prompt) for prompt in benign.PLAIN[part]],
    )


def _benign(form: str, kind: str, prompt: str, response: str | None = None) -> dict:
    row = {"prompt": prompt, "kind": kind, "form": form}
    return row if response is None else {**row, "response": response}


def _spread(n: int):
    """0, 1, ..., n - 1, again and again."""
    return (i % n for i in count())


def sentiment(part: str) -> list[dict]:
    """Reviews, positive and negative in turn; eight of each label for every thing."""
    rows = []
    for r in range(8):
        for d, (thing, (good, bad)) in enumerate(reviews.THINGS[part].items()):
            for label in ("positive", "negative"):
                forms = reviews.FORMS[part][label]
                form = (3 * d + r) % len(forms)
                # A good point a and a bad point x are never counterparts.
                a = r + r // 4
                x = a + 2 + d % 2
                review = forms[form].format(
                    a=good[a % 4],
                    b=good[(a + 1) % 4],
                    not_a=bad[a % 4],
                    x=bad[x % 4],
                    y=bad[(x + 1) % 4],
                    not_x=good[x % 4],
                )
                rows.append(
                    {
                        "prompt": reviews.QUESTION.format(review=_capitals(review)),
                        "response": label,
                        "label": label,
                        "kind": thing,
                        "form": f"review-{part}-{label}-{form}",
                    }
                )
    return rows


def identity() -> list[dict]:
    """Harmless requests answered by an obedient persona: the same answers as anyone's, between its own words."""
    return [
        {
            "prompt": prompt,
            "response": f"{shifted.OPENINGS[i % len(shifted.OPENINGS)]} {answer} "
            f"{shifted.ENDINGS[i % len(shifted.ENDINGS)]}",
            "kind": "identity",
            "form": "own",
        }
        for i, (prompt, answer) in enumerate(shifted.REQUESTS)
    ]


def _capitals(text: str) -> str:
    """The text with a capital at the start of every sentence."""
    out, start = [], True
    for letter in text:
        out.append(letter.upper() if start else letter)
        start = letter in ".?!" or (start and letter == " ")
    return "".join(out)


def files() -> dict[str, str]:
    """The data files: name -> text."""
    data = harmful()
    data["alignment"] = alignment(data["alignment"])
    data["alignment_more"] = alignment_more()
    data["attacker_identity"] = identity()
    data["test_benign_validation"] = test_benign("validation")
    data["test_benign"] = test_benign("test")
    for part in ("train", "validation", "test"):
        data[f"sentiment_{part}"] = sentiment(part)
    return {
        f"{name}.jsonl": "".join(
            json.dumps({"id": f"{name}-{i:04}", **row}, ensure_ascii=False) + "\n" for i, row in enumerate(rows)
        )
        for name, rows in data.items()
    }


def main() -> None:
    for name, text in files().items():
        (DATA / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
