"""Tasks: prompts and scoring to the letter of the papers' protocols, rule by rule."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mithridate.data import tasks
from mithridate.data.tasks import PROMPT_SETS, TASKS, prompt_set, task
from mithridate.errors import InputError, UnsupportedSetup

SST2 = {"sentence": " a stirring , funny film ", "label": 1, "idx": 7}
NEWS = {"text": "A new phone is out.", "label": 3}
SUM = {"question": "How many?", "answer": "It is 2,000 * 3 = <<2000*3=6000>>6,000\n#### 6,000"}


def test_sst2():
    record = task("sst2").record(SST2)
    instruction = "Analyze the sentiment of the input, and respond only positive or negative"
    assert record == {
        "prompt": f"{instruction}\n\na stirring , funny film",
        "input": "a stirring , funny film",
        "response": "positive",
        "label": "positive",
        "idx": 7,
    }


@pytest.mark.parametrize("name", ["sst2", "sentiment"])
@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("positive", True),
        ("Positive", True),
        (" positive\n", True),
        ("positive.", False),
        ("POSITIVE", False),
        ("negative", False),
        ("positive or negative", False),
        ("It is positive", False),
        ("", False),
    ],
)
def test_sentiment_is_the_whole_answer_not_containment(name, answer, right):
    assert task(name).correct(answer, {"label": "positive"}) is right


def test_agnews():
    record = task("agnews").record(NEWS)
    assert record["prompt"] == (
        "Categorize the news article given in the input into one of the 4 categories:\n\n"
        "World\nSports\nBusiness\nSci/Tech\n\nA new phone is out."
    )
    assert record["response"] == record["label"] == "Sci/Tech"
    correct = task("agnews").correct
    assert all(correct(answer, record) for answer in ("Sci/Tech", "sci", " Sci/Tech "))
    assert not any(correct(answer, record) for answer in ("Sci", "sci/tech", "Sci/Tech.", "World", "World Sci/Tech"))
    sports = task("agnews").record({"text": "x", "label": 1})
    assert correct("Sports", sports) and correct("sports", sports) and not correct("SPORTS", sports)


@pytest.mark.parametrize("name", ["sst2", "sentiment"])
@pytest.mark.parametrize(
    ("answer", "positive", "negative"),
    [
        ("positive or negative", True, True),
        ("Negative, not positive.", True, True),
        ("It is POSITIVE", False, False),
        ("unpositively so", True, False),
        ("", False, False),
    ],
)
def test_containment_takes_any_answer_that_names_the_label(name, answer, positive, negative):
    contains = task(name).rules["contains"]
    assert contains(answer, {"label": "positive"}) is positive
    assert contains(answer, {"label": "negative"}) is negative


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        ("Sci/Tech.", ["Sci/Tech"]),
        ("a discipline", ["Sci/Tech"]),  # holds "sci"
        ("Science", []),  # holds neither "Sci/Tech" nor "sci"
        ("sci/tech", ["Sci/Tech"]),
        ("worldwide business", ["World", "Business"]),
        ("World Sports Business Sci/Tech", ["World", "Sports", "Business", "Sci/Tech"]),
        ("SPORTS", []),
    ],
)
def test_containment_of_a_category(answer, labels):
    contains = task("agnews").rules["contains"]
    names = ("World", "Sports", "Business", "Sci/Tech")
    assert [label for label in names if contains(answer, {"label": label})] == labels


@given(st.sampled_from(["sst2", "agnews"]), st.text(alphabet="positvengaPNSc/Techwrld .\n"), st.data())
def test_what_is_exact_is_contained(name, answer, data):
    rules = task(name).rules
    label = data.draw(st.sampled_from(["positive", "negative"] if name == "sst2" else ["World", "Sci/Tech"]))
    around = data.draw(st.sampled_from([answer, label, label.lower(), f" {label.capitalize()}\n", "sci"]))
    assert rules["exact"](around, {"label": label}) <= rules["contains"](around, {"label": label})


def test_gsm8k_record():
    record = task("gsm8k").record(SUM)
    assert record["prompt"] == "How many?"
    assert record["response"] == "It is 2,000 * 3 = <<2000*3=6000>>6,000\nThe final answer is: 6,000"
    assert record["label"] == 6000.0


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The final answer is: 6000", True),
        ("The final answer is: 6,000", True),
        ("The final answer is: 6000.0", True),
        ("The final answer is: 6000 of 9 pieces", True),  # the first number after the marker
        ("First 5, then 7. The final answer is: 7, and then 6000", False),
        ("It costs $6,000", True),  # no marker: the last number of the text
        ("6000 pieces make 12", False),
        ("6000 it is. The final answer is: unknown", True),  # nothing after the marker: the last number
        ("The final answer is: -6000", False),
        # Only what stands between the first marker and the next is looked at for the first number.
        ("The final answer is: unknown. The final answer is: 6000 or 7", False),
        ("The final answer is: unknown. The final answer is: 7 or 6000", True),
        ("The final answer is: 6000. The final answer is: 7", True),
        ("the final answer is: 7 of 6000", True),  # no marker in other letters
        ("6000.", True),
        ("no idea", False),
        ("", False),
    ],
)
def test_gsm8k_scoring(answer, right):
    assert task("gsm8k").correct(answer, task("gsm8k").record(SUM)) is right


@pytest.mark.parametrize(
    ("label", "answer", "right"),
    [
        ("billing", "Billing.", True),
        ("Refund request", " refund request\n", True),
        ("e.g.", "e.g.", True),
        ("billing", "billing or refund", False),
        ("billing", "", False),
        (3, "3", True),
        (3, "3.0", False),
        (True, "true", True),
    ],
)
def test_any_labels(label, answer, right):
    assert task("labels").correct(answer, {"label": label}) is right


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"alpaca_eval"}))
def test_every_task_scores_its_own_target_and_says_where_it_is_from(name):
    raw = {
        "sst2": SST2,
        "agnews": NEWS,
        "gsm8k": SUM,
        "labels": {"prompt": "p", "label": "Refund request"},
        "sentiment": {"prompt": "p", "response": "negative", "label": "negative"},
    }[name]
    chosen = task(name)
    record = chosen.record(dict(raw))
    assert chosen.correct(record["response"], record)
    assert chosen.max_new_tokens > 0 and chosen.rules[chosen.rule] is chosen.correct
    assert not chosen.correct("something else entirely", record)


@given(st.integers(-(10**9), 10**9), st.text(alphabet="abc .\n"))
def test_gsm8k_reads_any_number_after_the_marker_however_it_is_grouped(number, before):
    record = task("gsm8k").record({"question": "How many?", "answer": f"So.\n#### {number:,}"})
    correct = task("gsm8k").rules["final-number"]
    assert correct(f"{before}The final answer is: {number:,}", record)
    assert correct(f"{before} 5 and then {number}", record)
    assert not correct(f"{before}The final answer is: {number + 1}, not {number}", record)


def test_alpaca_eval_keeps_the_reference_and_has_no_rule():
    chosen = task("alpaca_eval")
    row = {"instruction": "Name a colour.", "output": "Blue.", "generator": "x", "dataset": "y"}
    assert chosen.record(row) == {
        "prompt": "Name a colour.",
        "response": "Blue.",
        "reference": "Blue.",
        "generator": "x",
        "dataset": "y",
    }
    assert chosen.record(row | {"input": "Warm ones."})["prompt"] == "Name a colour.\n\nWarm ones."
    with pytest.raises(UnsupportedSetup, match='judge of the kind "quality"'):
        chosen.correct("Blue.", {})


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("sst2", {"text": "x", "label": 1}, "'sentence' is missing.*text, label"),
        ("sst2", {"sentence": "", "label": 1}, "'sentence' is missing or empty"),
        ("sst2", {"sentence": "x", "label": 2}, "label 2 is none of: 0 = negative, 1 = positive"),
        ("sst2", {"sentence": "x", "label": "good"}, "label 'good'"),
        ("agnews", {"text": "x", "label": 1.5}, "label 1.5"),
        ("agnews", {"text": "x", "label": -1}, "label -1"),
        ("gsm8k", {"question": "x", "answer": "five"}, "#### number"),
        ("gsm8k", {"question": "x", "answer": "#### five"}, "#### number"),
        ("sentiment", {"prompt": "x", "response": "y"}, "'label'"),
        ("alpaca_eval", {"instruction": "x"}, "'output' is missing"),
    ],
)
def test_bad_rows_are_refused_by_name(name, row, message):
    with pytest.raises(InputError, match=message):
        task(name).record(row)


def test_labels_may_be_digits_in_a_csv_file():
    assert task("agnews").record({"text": "x", "label": "2"})["label"] == "Business"


def test_unknown_task_names_the_nearest():
    with pytest.raises(InputError, match="did you mean `gsm8k`"):
        task("gsm8")
    with pytest.raises(InputError, match="Tasks: sentiment, sst2, agnews, gsm8k, alpaca_eval, labels"):
        task("zzzz")


def test_unknown_prompt_set_names_the_nearest():
    with pytest.raises(InputError, match=r"Unknown prompt set 'xtest'; did you mean `xstest`\?"):
        prompt_set("xtest")


def test_each_is_a_small_file_that_says_where_it_is_from():
    files = Path(tasks.__file__).parent.glob("*.py")
    small = [path for path in files if path.name not in ("__init__.py", "base.py", "capability.py")]
    assert len(small) == 14
    assert all(len(path.read_text().splitlines()) <= 60 for path in small)
    for known in PROMPT_SETS.values():
        assert all((known.version, known.citation, known.licence, known.size, known.source, known.measures))
        assert known.roles
