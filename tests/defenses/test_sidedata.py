"""Batches of a step are a function of (seed, step, rank)."""

from hypothesis import given
from hypothesis import strategies as st

from mithridate.training.side_data import SideData

sizes = st.integers(1, 40)
steps = st.integers(0, 10**6)


def stream(n, batch_size=1, window=1, rank=0, world_size=1, seed=0):
    return SideData(
        list(range(n)),  # type: ignore[arg-type]
        tuple,
        batch_size=batch_size,
        window=window,
        rank=rank,
        world_size=world_size,
        seed=seed,
    )


@given(n=sizes, rows=st.integers(1, 16), step=steps, seed=st.integers(0, 2**32), data=st.data())
def test_the_rows_of_a_step_do_not_depend_on_the_split(n, rows, step, seed, data):
    ways = [
        (b, m, w)
        for b in range(1, rows + 1)
        for m in range(1, rows + 1)
        for w in range(1, rows + 1)
        if b * m * w == rows
    ]
    b, m, w = data.draw(st.sampled_from(ways))
    one = stream(n, batch_size=rows, seed=seed).take(step, 1)[0]
    parts = [stream(n, b, m, rank, w, seed).take(step, m) for rank in range(w)]
    assert sorted(x for part in parts for batch in part for x in batch) == sorted(one)


@given(n=sizes, first=steps, count=st.integers(1, 5), seed=st.integers(0, 100))
def test_a_fresh_stream_goes_on_where_another_was(n, first, count, seed):
    used = stream(n, 3, 2, seed=seed)
    for step in range(3):
        used.take(step, 2)
    assert used.take(first, 2) == stream(n, 3, 2, seed=seed).take(first, 2)
    assert used.take(first, 2)[:1] == stream(n, 3, 2, seed=seed).take(first, 1)


@given(n=sizes, passes=st.integers(1, 4))
def test_every_row_once_before_any_twice(n, passes):
    s = stream(n)
    drawn = [s.take(step, 1)[0][0] for step in range(n * passes)]
    for i in range(passes):
        assert sorted(drawn[i * n : (i + 1) * n]) == list(range(n))


def test_passes_and_seeds_differ_in_order():
    first, second = ([x for s in range(p * 20, p * 20 + 20) for x in stream(20).take(s, 1)[0]] for p in (0, 1))
    assert first != second
    assert first != [x for s in range(20) for x in stream(20, seed=1).take(s, 1)[0]]
