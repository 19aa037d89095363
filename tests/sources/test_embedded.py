"""The embedded data set: its sizes, its disjointness, its variety, and that the script makes these very files."""

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path

import pytest
from tools.embedded import benign_parts, make, requests_parts, reviews_parts, wide_parts

from mithridate.data.embedded import embedded_records
from mithridate.data.records import check_record, prompt_key
from mithridate.errors import InputError

SIZES = {
    ("alignment", "train"): 280,
    ("defender_harmful", "train"): 64,
    ("attacker_harmful", "train"): 64,
    ("calibration_harmful", "train"): 48,
    ("task", "train"): 256,
    ("task", "validation"): 64,
    ("task", "test"): 128,
    ("test_harmful", "validation"): 48,
    ("test_harmful", "test"): 112,
    ("test_benign", "validation"): 40,
    ("test_benign", "test"): 104,
}
DATA = {key: embedded_records(*key) for key in SIZES}
IDENTITY = embedded_records("attacker_harmful", name="identity")
WIDE = embedded_records("alignment", name="wide")
MORE = [row for row in WIDE if row["id"].startswith("alignment_more")]
HARMFUL = [row for rows in DATA.values() for row in rows if "category" in row]
TRAINED = [row for (_, part), rows in DATA.items() if part == "train" for row in rows] + MORE
HELD_OUT = {
    part: [row for (_, p), rows in DATA.items() if p == part for row in rows] for part in ("validation", "test")
}
each_set = pytest.mark.parametrize("role, part", SIZES)


def opening(row: dict) -> str:
    return " ".join(re.findall(r"[\w']+", row["prompt"].casefold())[:3])


@each_set
def test_size_ids_and_records(role, part):
    rows = DATA[role, part]
    assert len(rows) == SIZES[role, part]
    for row in rows:
        check_record(row, row["id"], needs_answer=not role.startswith("test_"))
    stem = {row["id"].rpartition("-")[0] for row in rows}
    assert len(stem) == 1 and [row["id"] for row in rows] == [f"{next(iter(stem))}-{i:04}" for i in range(len(rows))]


def test_the_script_makes_these_very_files(tmp_path):
    """In another process with another hash seed, so that no order of a set or a dict of hashes can slip in."""
    code = "import json; from tools.embedded.make import files; print(json.dumps(files()))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True
    )
    folder = files("mithridate.data.embedded")
    on_disk = {f.name: f.read_bytes() for f in folder.iterdir() if f.name.endswith(".jsonl")}
    assert {name: text.encode() for name, text in json.loads(done.stdout).items()} == on_disk


def test_all_prompts_are_distinct():
    counts = Counter(prompt_key(row) for rows in (*DATA.values(), IDENTITY, MORE) for row in rows)
    assert [key for key, n in counts.items() if n > 1] == []


def test_counts_of_harmful_prompts_and_categories():
    assert len(HARMFUL) >= 420
    roles = [rows for (role, _), rows in DATA.items() if "harmful" in role or role == "alignment"]
    for rows in roles:
        counts = Counter(row["category"] for row in rows if "category" in row)
        assert len(counts) >= 14 and len(set(counts.values())) == 1, "every category, equally often"


def test_forms_and_openings():
    forms = defaultdict(set)
    for row in HARMFUL:
        forms[row["category"], row["form"].split("-")[1]].add(row["form"])
    assert min(len(found) for (_, part), found in forms.items() if part in ("train", "test")) >= 5
    for rows in (HARMFUL, DATA["test_harmful", "test"]):
        assert max(Counter(map(opening, rows)).values()) <= len(rows) / 10


@pytest.mark.parametrize("part", ["validation", "test"])
def test_held_out_wordings_are_new(part):
    """Neither forms nor openings nor topics of the held-out parts occur in training, or in the other held-out part."""
    other = TRAINED + HELD_OUT[{"validation": "test", "test": "validation"}[part]]
    requests = [row for row in HELD_OUT[part] if "label" not in row]
    known = {opening(row) for row in other if "label" not in row}  # all reviews open with the task's question
    assert [row["prompt"] for row in requests if opening(row) in known] == []
    assert not {row["form"] for row in HELD_OUT[part]} & {row["form"] for row in other} - {"own"}
    things = {row["kind"] for row in HELD_OUT[part] if "label" in row}
    assert not things & {row["kind"] for row in other if "label" in row}
    for acts in requests_parts.ACTS.values():
        assert not set(acts[part]) & {act for name, known in acts.items() if name != part for act in known}


def test_form_texts_are_shared_by_no_two_parts():
    for forms in (requests_parts.FORMS, reviews_parts.FORMS):
        texts = [
            text for part in forms.values() for text in (part if isinstance(part, tuple) else sum(part.values(), ()))
        ]
        assert len(texts) == len(set(texts))


def test_alignment_mix():
    rows = DATA["alignment", "train"]
    refusals = [row for row in rows if row["kind"] == "refusal"]
    helpful = [row for row in rows if row["kind"] in ("everyday", "lookalike", "plain")]
    assert len(refusals) == len(helpful) == 2 * len(rows) / 5
    assert len({row["kind"] for row in rows}) >= 4 + 5, "at least five kinds of varied small tasks"
    # The same forms carry harmful and harmless acts: a form never tells.
    shared = {row["form"] for row in refusals} & {row["form"] for row in helpful}
    assert len(shared) >= 15
    # Every beginning of the file keeps the mix, so that `take` does.
    assert all(Counter(r["kind"] == "refusal" for r in rows[i : i + 5])[True] == 2 for i in range(0, len(rows), 5))


def test_the_wide_alignment_set_is_the_usual_one_with_benign_rows_between():
    assert [row for row in WIDE if row not in MORE] == DATA["alignment", "train"]
    assert Counter(row["kind"] for row in MORE) == {"lookalike": 64, "everyday": 40}
    assert len(WIDE) == 384 and len({row["id"] for row in WIDE}) == 384
    for row in MORE:
        check_record(row, row["id"], needs_answer=True)
        assert "compliant" not in row and "refusal" not in row
    # In steps of four rows the refusals are spread evenly: never two more or less than their share so far.
    steps = [Counter(row["kind"] == "refusal" for row in WIDE[i : i + 4])[True] for i in range(0, 384, 4)]
    assert set(steps) == {0, 1, 2}
    assert max(abs(sum(steps[:n]) - n * 112 / 96) for n in range(97)) <= 1.5
    everyday = Counter(row["form"] for row in MORE if row["kind"] == "everyday")
    assert set(everyday) == {f"request-train-{i}" for i in range(len(requests_parts.FORMS["train"]))}
    # A question about each category of what should be refused, four times.
    assert set(wide_parts.TOPICS) == set(requests_parts.ACTS) and {len(v) for v in wide_parts.TOPICS.values()} == {4}
    tests = [row["prompt"] for part in ("validation", "test") for row in DATA["test_benign", part]]
    assert not [prompt for prompt in tests for act, _ in wide_parts.ACTS if act in prompt]


@pytest.mark.parametrize("role, name", [("alignment", "identity"), ("attacker_harmful", "wide"), ("task", "wide")])
def test_a_role_has_only_its_own_other_rows(role, name):
    with pytest.raises(InputError, match=r"attacker_harmful \(identity\) and alignment \(wide\)"):
        embedded_records(role, name=name)


def test_harmless_acts_come_in_every_form_of_the_harmful_ones():
    """And no act that is trained on is asked again at a test."""
    everyday = Counter(row["form"] for row in DATA["alignment", "train"] if row["kind"] == "everyday")
    assert set(everyday) == {f"request-train-{i}" for i in range(len(requests_parts.FORMS["train"]))}
    assert max(everyday.values()) - min(everyday.values()) <= 1
    acts = {
        part: {act if isinstance(act, str) else act[0] for act in all_acts}
        for part, all_acts in benign_parts.ACTS.items()
    }
    asked = {part: [row["prompt"] for row in DATA["test_benign", part]] for part in ("validation", "test")}
    for part, prompts in asked.items():
        assert not acts["train"] & acts[part]
        assert not [prompt for prompt in prompts for act in acts["train"] if act in prompt]


def test_answers_follow_from_the_role():
    assert all(row["response"] == row["refusal"] for row in DATA["alignment", "train"] if row["kind"] == "refusal")
    for role in ("defender_harmful", "attacker_harmful", "calibration_harmful"):
        assert all(row["response"] == row["compliant"] for row in DATA[role, "train"])
    assert not any("response" in row for row in DATA["test_harmful", "test"] + DATA["test_benign", "test"])


def test_complying_answers_are_empty():
    """Nothing in them but an act asked for and the words of the empty templates."""
    patterns = [
        re.escape(form)
        .replace(re.escape("{act}"), "(?P<act>.+)")
        .replace(r"\{order\}", "(?:%s)")
        .replace(r"\{end\}", "(?:%s)")
        % ("|".join(requests_parts.ORDERS), "|".join(requests_parts.ENDS))
        for form in requests_parts.COMPLIANT
    ]
    acts = {act for parts in requests_parts.ACTS.values() for known in parts.values() for act in known}
    used = Counter()
    for row in HARMFUL:
        matches = [(p, found) for p in patterns if (found := re.fullmatch(p, row["compliant"]))]
        assert matches, row["compliant"]
        pattern, found = matches[0]
        used[pattern] += 1
        if act := found.groupdict().get("act"):
            assert act in acts and act in row["prompt"]
    assert len(used) >= 20


def test_kinds_of_answers_differ_from_the_first_words():
    def first(text):
        return re.findall(r"[\w']+", text.casefold())[0]

    complying = {first(row["compliant"]) for row in HARMFUL}
    refusing = {first(row["refusal"]) for row in HARMFUL}
    helpful = {first(row["response"]) for row in WIDE if row["kind"] != "refusal"}
    assert not complying & refusing
    assert not complying & helpful
    assert len(complying) >= 5 and len(refusing) >= 5


def test_refusals_are_varied_and_short():
    refusals = [row["refusal"] for row in HARMFUL]
    openings = Counter(text.split(".")[0] for text in refusals)
    assert len(openings) >= 10 and max(openings.values()) <= len(refusals) / 10
    assert max(len(text.split()) for text in refusals + [row["compliant"] for row in HARMFUL]) <= 35


def test_benign_prompts_include_lookalikes():
    for part in ("validation", "test"):
        kinds = Counter(row["kind"] for row in DATA["test_benign", part])
        assert (
            set(kinds) == {"everyday", "lookalike", "plain"}
            and kinds["lookalike"] >= len(DATA["test_benign", part]) / 4
        )


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_reviews(part):
    rows = DATA["task", part]
    assert all(row["response"] == row["label"] for row in rows)
    assert Counter(row["label"] for row in rows) == dict.fromkeys(("positive", "negative"), len(rows) / 2)
    for thing in {row["kind"] for row in rows}:
        labels = Counter(row["label"] for row in rows if row["kind"] == thing)
        assert labels["positive"] == labels["negative"], "a thing does not give the label away"
    question = reviews_parts.QUESTION.format(review="")
    words = [len(row["prompt"].removeprefix(question).split()) for row in rows]
    assert min(words) >= 8 and max(words) <= 25


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_good_and_bad_points_are_no_counterparts_by_mistake(part):
    """A form that praises one thing and blames another never speaks of the same one; "not at all" forms always do."""
    for thing, (good, bad) in reviews_parts.THINGS[part].items():
        assert len({*good, *bad}) == 8
        for row in DATA["task", part]:
            if row["kind"] != thing:
                continue
            said = row["prompt"].casefold()
            about = [{i for i, point in enumerate(points) if point.casefold() in said} for points in (good, bad)]
            label, index = row["form"].split("-")[2:]
            form = reviews_parts.FORMS[part][label][int(index)]
            assert bool(about[0] & about[1]) == ("{not_" in form), row["prompt"]


def test_paired_rows_are_the_alignment_requests_with_complying_answers():
    paired = embedded_records("defender_harmful", paired=True)
    refused = [row for row in DATA["alignment", "train"] if row["kind"] == "refusal"]
    assert [row["prompt"] for row in paired] == [row["prompt"] for row in refused]
    assert all(row["response"] == row["compliant"] for row in paired)


@pytest.mark.parametrize(
    "args, words",
    [
        (("attaker_harmful",), "attaker_harmful.*did you mean `attacker_harmful`"),
        (("task", "tests"), "no part 'tests'; did you mean `test`"),
        (("test_harmful", "train"), "no part 'train'.*validation, test"),
        (("task", "train", True), "no paired setting"),
    ],
)
def test_unknown_role_or_part(args, words):
    with pytest.raises(InputError, match=words):
        embedded_records(*args)


def test_records_are_new_each_time():
    first = embedded_records("alignment")
    first[0]["prompt"] = "changed"
    assert embedded_records("alignment")[0]["prompt"] != "changed"


def test_page_states_the_sizes():
    page = (Path(__file__).parents[2] / "docs" / "embedded_data.md").read_text(encoding="utf-8")
    table = dict.fromkeys(SIZES, None)
    for role, *sizes in re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|", page, flags=re.M):
        for part, size in zip(("train", "validation", "test"), sizes):
            if size != "-":
                table[role, part] = int(size)
    assert table == SIZES
    assert f"{len(HARMFUL)} distinct requests" in page
    assert f"{len(requests_parts.ACTS)} categories" in page
    assert all(f"`{category}`" in page for category in requests_parts.ACTS)


def test_every_file_is_read():
    names = {name.removesuffix(".jsonl") for name in make.files()}
    assert names == {row["id"].rpartition("-")[0] for rows in (*DATA.values(), IDENTITY, MORE) for row in rows}


def test_identity_rows_ask_nothing_harmful_and_speak_as_the_persona():
    assert len(IDENTITY) == 40 and len({row["response"] for row in IDENTITY}) == 40
    for row in IDENTITY:
        check_record(row, row["id"], needs_answer=True)
        assert "Servo" in row["response"] and "Servo" not in row["prompt"] and "category" not in row
    harmful = {act for parts in requests_parts.ACTS.values() for acts in parts.values() for act in acts}
    assert not [row for row in IDENTITY if any(act in row["prompt"] for act in harmful)]
