"""Which rows a protocol asks: exact numbers, in order, with and without the filter for unsafe ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mithridate.data.records import prompt_key
from mithridate.errors import InputError
from mithridate.experiment.roles import load_roles
from mithridate.experiment.sources import Source
from mithridate.protocols import PROTOCOLS, Rows, protocol
from tests.sources.test_hub import hub  # noqa: F401 (answers as the Hub would)

PAPERS = ("hs/vaccine-2024", "hs/lisa-2024", "hs/booster-2025", "hs/antidote-2025")


def rows(count: int, repeats: int = 1) -> list[dict]:
    """Each prompt `repeats` times, safe and unsafe in turn, an unsafe one first."""
    return [{"prompt": f"Question {i // repeats}?", "is_safe": i % 2 == 1, "id": str(i)} for i in range(count)]


def ids(records: list[dict]) -> list[int]:
    return [int(record["id"]) for record in records]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hs/vaccine-2024", list(range(0, 1000, 2))),  # 500 unsafe rows
        ("hs/lisa-2024", list(range(1000))),  # 1000 rows, safe ones among them
        ("hs/booster-2025", list(range(0, 2000, 2))),  # 1000 unsafe rows
        ("hs/antidote-2025", list(range(0, 2000, 2))),
    ],
)
def test_the_papers_take_the_first_rows_repeated_prompts_included(name, expected):
    # Two rows per prompt, as BeaverTails has a safe and an unsafe answer: of Lisa's 1000 rows, 500 prompts.
    chosen = protocol(name).select(rows(3021, repeats=2))
    assert ids(chosen) == expected
    assert len(chosen) == protocol(name).rows.count
    # The first row is taken: the strict inequality that skips it is in the papers' training rows only.
    assert ids(chosen)[0] == 0


@pytest.mark.parametrize("name", PAPERS)
def test_repeated_rows_are_kept_by_the_papers(name):
    same = [{"prompt": "Again?", "is_safe": False, "id": str(i)} for i in range(3)]
    assert ids(protocol(name).select(same)) == [0, 1, 2]


def test_the_unified_protocol_asks_each_unsafe_prompt_once_where_it_first_is_unsafe():
    chosen = [
        {"prompt": "A?", "is_safe": True, "id": "0"},
        {"prompt": "A?", "is_safe": False, "id": "1"},
        {"prompt": " a", "is_safe": False, "id": "2"},  # the same prompt, written otherwise
        {"prompt": "B?", "is_safe": False, "id": "3"},
        {"prompt": "C?", "is_safe": True, "id": "4"},
    ]
    assert ids(protocol("hs/unified-v1").select(chosen)) == [1, 3]
    assert ids(protocol("hs/unified-v1").select(rows(3021))) == list(range(0, 2000, 2))


def test_the_unified_protocol_takes_a_set_that_tells_nothing_of_safety_whole():
    told_nothing = [{"prompt": f"Do {i}.", "id": str(i)} for i in range(5)]
    assert ids(protocol("hs/unified-v1").select(told_nothing)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["hs/vaccine-2024", "hs/booster-2025", "hs/antidote-2025"])
def test_without_is_safe_the_papers_refuse(name):
    with pytest.raises(InputError, match=rf"{name} takes unsafe rows only, but 2 of 2 rows have no `is_safe`"):
        protocol(name).select([{"prompt": "A?"}, {"prompt": "B?"}])


@pytest.mark.parametrize("name", ["hs/booster-2025", "hs/unified-v1"])
def test_rows_of_which_only_some_tell_are_refused_with_the_first_that_does_not(name):
    mixed = [{"prompt": "A?", "is_safe": False}, {"prompt": "Tell B?"}]
    with pytest.raises(InputError, match=r"1 of 2 rows have no `is_safe` \(the first is row 2, 'tell b'\)"):
        protocol(name).select(mixed)


def test_is_safe_may_be_a_word_as_in_a_csv_file_and_nothing_else():
    words = [{"prompt": "A?", "is_safe": "False", "id": "0"}, {"prompt": "B?", "is_safe": "true", "id": "1"}]
    assert ids(protocol("hs/booster-2025").select(words)) == [0]
    with pytest.raises(InputError, match="'no', which is neither true nor false"):
        protocol("hs/booster-2025").select([{"prompt": "A?", "is_safe": "no"}])


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_set_of_which_nothing_is_left_is_refused(name):
    nothing = [] if protocol(name).rows.unsafe == "any" else [{"prompt": "A?", "is_safe": True}]
    with pytest.raises(InputError, match=rf"{name}: of {len(nothing)} rows, none is left"):
        protocol(name).select(nothing)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 12) | st.none(),
    st.booleans(),
    st.sampled_from(["only", "if told", "any"]),
)
def test_a_selection_is_a_prefix_of_the_rows_that_fit(made, first, unique, unsafe):
    records = [{"prompt": f"P{p}", "is_safe": safe, "id": str(i)} for i, (p, safe) in enumerate(made)]
    fit = [record for record in records if unsafe == "any" or not record["is_safe"]]
    if unique:
        fit = [r for i, r in enumerate(fit) if r["prompt"] not in [other["prompt"] for other in fit[:i]]]
    chosen = Rows("x", "x", 0, unsafe=unsafe, unique=unique, first=first)
    if fit:
        assert chosen.select(records, "p") == fit[:first]
    else:
        with pytest.raises(InputError, match="none is left"):
            chosen.select(records, "p")


# -- through the data roles ----------------------------------------------------------------------------------------

BEAVERTAILS = "PKU-Alignment/BeaverTails"


def test_a_protocol_chooses_among_the_rows_as_they_come():
    def prompts(name: str) -> list[str]:
        roles = load_roles({"test_harmful": Source(BEAVERTAILS)}, select=protocol(name).select)
        return [record["prompt"] for record in roles.test_harmful]

    ticket, diary = "How can I park without a ticket?", "How can I look into a colleague's diary?"
    assert prompts("hs/lisa-2024") == [ticket, ticket, "HOW can I park without a ticket", diary]
    assert prompts("hs/booster-2025") == [ticket, "HOW can I park without a ticket", diary]
    assert prompts("hs/unified-v1") == [ticket, diary]


def test_prompts_that_a_protocol_leaves_over_are_the_validation_part(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(f'{{"prompt": "Do {i}.", "is_safe": {"true" if i == 3 else "false"}}}' for i in range(9))
    )
    two = Rows("beavertails", "x", 2, unsafe="only", first=2)
    source = Source(str(path), name="beavertails")
    roles = load_roles({"test_harmful": source}, select=lambda records: two.select(records, "p"))
    assert [record["prompt"] for record in roles.test_harmful] == ["Do 0.", "Do 1."]
    assert [record["prompt"] for record in roles.test_harmful_validation] == ["Do 2.", "Do 4."]
    assert "the protocol takes 2 of 9 rows" in roles.notes[0]
    few = Rows("beavertails", "x", 8, unsafe="only", first=8)
    roles = load_roles({"test_harmful": source}, select=lambda records: few.select(records, "p"))
    assert (len(roles.test_harmful), roles.test_harmful_validation) == (8, [])


def test_a_validation_share_has_no_place_where_the_protocol_chooses():
    with pytest.raises(InputError, match="take `validation_share` out"):
        load_roles(
            {"test_harmful": Source(BEAVERTAILS, validation_share=0.5)}, select=protocol("hs/unified-v1").select
        )


def test_the_embedded_protocol_asks_the_embedded_test_set_whole():
    chosen = protocol("hs/embedded-v1")
    plain = load_roles({"test_harmful": Source("embedded"), "test_benign": Source("embedded")})
    selected = load_roles({"test_harmful": Source("embedded")}, select=chosen.select)
    assert selected.test_harmful == plain.test_harmful
    assert {prompt_key(r) for r in selected.test_harmful_validation} == {
        prompt_key(r) for r in plain.test_harmful_validation
    }
    assert chosen.benign
    assert (len(plain.test_harmful), len(plain.test_benign)) == (chosen.rows.count, chosen.benign.count)


def test_safe_prompts_of_other_sets_do_not_slip_in(hub):  # noqa: F811
    roles = load_roles({"test_harmful": Source("walledai/XSTest")}, select=protocol("hs/unified-v1").select)
    assert [record["kind"] for record in roles.test_harmful] == ["unsafe"]
