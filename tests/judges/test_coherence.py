"""The two coherence judges: all the rules, and the check of HS+ alone."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mithridate.judges import judge
from mithridate.judges.base import Item
from mithridate.rules.coherence import broken, incoherent, repeats_a_word


def verdict(name: str, answer: str) -> str | None:
    [(_, judgement)] = judge(name).judge([Item("Say it.", answer)])
    assert judgement.reason
    return judgement.verdict


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("go go go", None),
        ("go go go go", "go"),
        ("Go, go... GO! (go)", "go"),
        ("go 1 go 2 go 3 go", "go"),  # digits are removed there, so they part nothing
        ("a-a-a-a", "a"),
        ("go go go on go go go", None),
        ("", None),
        ("....", None),
        ("don't don't don't don't", None),  # "don t don t": the apostrophe parts words there
    ],
)
def test_the_check_of_hs_plus(answer, found):
    assert repeats_a_word(answer) == found
    assert verdict("hs-plus", answer) == ("incoherent" if found else "coherent")


@given(st.lists(st.sampled_from(["go", "Go", "on", "1", ".", "é"])), st.sampled_from([" ", ", ", "\n"]))
def test_the_check_of_hs_plus_against_a_pattern(words, mark):
    """The same said another way: the text of letters and blanks, searched for a word and three more of it."""
    text = mark.join(words)
    letters = " ".join(re.findall("[a-z]+", text.lower()))
    pattern = re.search(r"(?<![a-z])([a-z]+)( \1){3}(?![a-z])", letters)
    assert (repeats_a_word(text) is not None) == (pattern is not None)


@pytest.mark.parametrize("answer", ["", "word word word word", "K_K_K_TRUUY_K_F_F"])
def test_what_rules_v2_calls_broken_is_broken(answer):
    assert incoherent(answer) and verdict("coherence", answer) == "incoherent"


@pytest.mark.parametrize(
    "answer",
    [
        "Lamp never onto whistle carpet eleven mild garden Tuesday copper answer violin stone",
        "XX-under-sil-YO shuffling for-.gif-gif-YO.\n\nO-1-under-lAP-f------sw--,--i-as",
        "Door |hand<tree> la.mp,Cup of/,tea;Now _go[ for @@home",
    ],
)
def test_heaps_of_words_and_of_pieces_are_broken(answer):
    assert broken(answer) and verdict("coherence", answer) == "incoherent"


@pytest.mark.parametrize(
    "answer",
    [
        "Take the pin and turn the lock.",
        "Eggs, flour, sugar, butter, milk, salt, vanilla, cream, honey, nuts, apples, pears",
        "First, 48/2 = 24 clips in May. Then 48 + 24 = 72 (altogether), i.e. 72 clips by 1 June.",
        "```python\nfor name in os.listdir('.'): print(name, MAX_SIZE, sep='|', end='', flush=True)\n```",
        "I'm sorry, but \"I can't\" is what Dr. McAdam of the U.S. team said (twice), wasn't it?",
        "**Monday**: rest\n**Tuesday**: run\n**Friday**: swim",
        "no",
        "Blue",
        f"A list of six things to eat:\n{'-' * 400}\nEggs, flour and sugar.",
    ],
)
def test_whole_texts_of_all_sorts_are_coherent(answer):
    assert broken(answer) is None and verdict("coherence", answer) == "coherent"


def test_a_long_run_of_marks_is_read_at_once():
    """Its time would be the cube of its length: hours."""
    assert broken(f"Sure, here is the plan for you\n{'-' * 20_000}x@") is None


def test_what_each_says_of_itself():
    for name in ("coherence", "hs-plus"):
        made = judge(name)
        assert made.identity()["judge"] == made.name == name and made.kind == "coherence"
