"""How many prompts and seeds a limit takes: as many as then decide it, and not many more."""

import numpy as np
import pytest

from mithridate.cli import main
from mithridate.statistics import across_seeds, proportion
from mithridate.statistics.needed import prompts_needed, prompts_per_seed


@pytest.mark.parametrize(("share", "limit"), [(0.02, 0.05), (0.0, 0.05), (0.2, 0.05), (0.9, 0.95)])
def test_so_many_prompts_decide_in_four_of_five_cases_and_fewer_do_not(share, limit):
    needed = prompts_needed(share, limit)
    assert needed

    def power(n: int) -> float:
        counts = np.random.default_rng(0).binomial(n, share, 4000)
        found = {k: proportion(int(k), n) for k in set(counts.tolist())}
        side = [found[k]["high"] <= limit if share <= limit else found[k]["low"] > limit for k in counts.tolist()]
        return float(np.mean(side))

    assert power(needed) >= 0.77
    assert power(needed // 2) < 0.8


def test_a_share_at_the_limit_is_never_decided():
    assert prompts_needed(0.05, 0.05) is None and prompts_per_seed(0.05, 0.05, 0.01, 8) is None


def test_few_seeds_that_agree_hold_no_small_limit():
    """0 of 448 over four seeds leave more than 0.05, and so do 0 of any number."""
    assert prompts_per_seed(0.0, 0.05, 0.0, 4) is prompts_per_seed(0.0, 0.05, 0.0, 10) is None
    needed = prompts_per_seed(0.0, 0.05, 0.0, 11)
    assert needed and across_seeds([[False] * needed] * 11)["high"] <= 0.05
    assert across_seeds([[False] * (needed // 2)] * 11)["high"] > 0.05


def test_seeds_that_spread_take_more():
    assert prompts_per_seed(0.1, 0.5, 0.05, 4) < prompts_per_seed(0.1, 0.5, 0.12, 4)
    assert prompts_per_seed(0.1, 0.3, 0.2, 3) is None


def test_the_command(capsys):
    assert main(["plan", "--share", "0", "--limit", "0.05"]) == 0
    text = capsys.readouterr().out
    assert f"{prompts_needed(0.0, 0.05)}" in text and "no number" in text
    assert main(["plan", "--share", "1.5", "--limit", "0.05"]) == 3
    assert "--share: expected a fraction from 0 to 1" in capsys.readouterr().err
