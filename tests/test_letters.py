"""Letters beside numbers: shared if and only if a pair of rows is not significant."""

from itertools import combinations

import numpy as np
import pytest

from benchmarks.bootstrap import RESAMPLES, resamplings
from benchmarks.letters import display, holm, letters, p_value, significant


def differing(rows, *pairs):
    """rows×rows, true at `pairs`."""
    differ = np.zeros((rows, rows), bool)
    for a, b in pairs:
        differ[a, b] = differ[b, a] = True
    return differ


def shares(first, second):
    return bool(set(first) & set(second))


def insert_and_absorb(differ):
    """Piepho (2004), section 3: split every group that holds a differing pair, and drop those inside another."""
    groups = [frozenset(range(len(differ)))]
    for pair in zip(*np.nonzero(np.triu(differ)), strict=True):
        split = [part for g in groups for part in ((g - {pair[0]}, g - {pair[1]}) if set(pair) <= g else (g,))]
        groups = [g for g in set(split) if not any(g < other for other in split)]
    return set(groups)


def groups_of(found):
    return {frozenset(i for i, own in enumerate(found) if letter in own) for letter in set("".join(found))}


def by_score(rows, random):
    """Differing pairs as scores on a line give them: if two rows differ, so do any two that enclose them."""
    scores, gap = np.sort(random.random(rows))[::-1], random.random() / 2
    return np.abs(scores[:, None] - scores) > gap


@pytest.mark.parametrize(
    ("pairs", "shown"),
    [
        ([], ["a", "a", "a", "a"]),
        ([(0, 2), (0, 3), (1, 3)], ["a", "ab", "bc", "c"]),
        ([(0, 1), (0, 2), (0, 3)], ["a", "b", "b", "b"]),
        ([(0, 3)], ["a", "ab", "ab", "b"]),
        (list(combinations(range(4), 2)), ["a", "b", "c", "d"]),
        ([(1, 2)], ["ab", "a", "b", "ab"]),  # the middle two differ, the outer two do not
    ],
    ids=str,
)
def test_letters_worked_by_hand(pairs, shown):
    assert display(differing(4, *pairs)) == shown


def test_rows_share_a_letter_if_and_only_if_they_do_not_differ():
    random = np.random.default_rng(0)
    for _ in range(200):
        rows, share = random.integers(2, 13), random.random()
        differ = np.triu(random.random((rows, rows)) < share, 1)
        differ |= differ.T
        shown = display(differ)
        assert all(shares(shown[a], shown[b]) != differ[a, b] for a, b in combinations(range(rows), 2))
        assert all(shown)
        assert "a" in shown[0]  # the best row
        assert all(own == "".join(sorted(own)) for own in shown)
        assert groups_of(shown) <= insert_and_absorb(differ)  # each is as large as can be


def test_groups_of_a_ranking_are_those_of_insert_and_absorb():
    random = np.random.default_rng(1)
    for _ in range(200):
        differ = by_score(random.integers(2, 20), random)
        shown = display(differ)
        assert groups_of(shown) == insert_and_absorb(differ)
        firsts = [own[0] for own in shown]
        assert firsts == sorted(firsts)  # a letter later in the alphabet begins further down


def test_pairs_that_do_not_make_a_ranking_stay_bounded():
    """Insert-and-absorb makes 2⁸ groups of these, and doubles them with every two rows."""
    pairs = [(i, i + 1) for i in range(0, 16, 2)]
    shown = display(differing(16, *pairs))
    assert len(set("".join(shown))) < 52  # of 112 pairs that share one
    assert not any(shares(shown[a], shown[b]) for a, b in pairs)
    assert shares(shown[0], shown[3])
    assert len(insert_and_absorb(differing(16, *pairs))) == 2**8


def test_more_groups_than_letters():
    shown = display(~np.eye(60, dtype=bool))
    assert (shown[0], shown[25], shown[26], shown[51], shown[52]) == ("a", "z", "A", "Z", "(53)")


def test_holm_worked_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.4]), [0.8, 0.8])
    assert holm([0.9, 0.8, 0.7]).max() == 1


def test_holm_steps_down_until_the_first_that_is_not_significant():
    random = np.random.default_rng(2)
    for _ in range(200):
        values = random.random(random.integers(1, 30)) ** 4
        rejected = set()
        for step, index in enumerate(np.argsort(values)):
            if values[index] > 0.05 / (len(values) - step):
                break
            rejected.add(index)
        assert set(np.flatnonzero(holm(values) <= 0.05)) == rejected


def measured(images, shifts, seed, spread=1.0):
    """RESAMPLES replicates a row of means over images, whose values share a part and are `shifts` apart."""
    random = np.random.default_rng(seed)
    values = random.normal(size=images) + spread * random.normal(size=(len(shifts), images))
    values += np.asarray(shifts)[:, None]
    return [resamplings(images) @ row / images for row in values]


def counted(gaps):
    """The p value without a distribution: twice the share of resamplings on the far side of zero."""
    return 2 * (min((gaps <= 0).sum(), (gaps >= 0).sum()) + 1) / (len(gaps) + 1)


def test_the_normal_tail_agrees_with_counting_where_that_is_possible():
    compared = 0
    for seed in range(60):
        first, second = measured(300, [0.0, 0.2], seed)
        counts, normal = counted(first - second), p_value(first - second)
        if counts >= 0.02:  # 10 of 1000 resamplings
            compared += 1
            assert normal == pytest.approx(counts, rel=0.4, abs=0.02)
    assert compared > 20
    clear = np.subtract(*measured(300, [1.0, 0.0], 0))
    assert counted(clear) == 2 / (RESAMPLES + 1)  # its floor, far above what Holm asks of many pairs
    assert p_value(clear) < 1e-6


def test_differences_that_no_resampling_changes():
    assert p_value(np.full(9, 2.0)) == 0
    assert p_value(np.zeros(9)) == 1
    assert p_value(np.full(9, 1e-14)) == 1  # rounding
    assert p_value(np.full(9, np.nan)) == 1
    assert p_value(np.array([1.0, -1, np.nan, 1, -1])) == 1
    assert p_value(np.array([3.0, 1, np.nan])) == pytest.approx(0.0455, abs=1e-4)  # two deviations


def test_letters_follow_the_scores_in_whatever_order_rows_stand():
    column = measured(400, [0.0, 5.0, 2.0, 2.01], 3)
    assert letters(column) == ["c", "a", "b", "b"]
    assert letters(column[::-1]) == ["b", "b", "a", "c"]
    assert letters(column[:1]) == [""]
    assert letters([]) == []


def test_a_pair_that_differs_alone_need_not_among_many():
    """What Holm's correction is for."""
    pair = next(p for p in (measured(300, [0.25, 0.0], s) for s in range(99)) if 0.01 < p_value(p[0] - p[1]) < 0.03)
    assert significant(pair)[0, 1]
    assert letters(pair) == ["a", "b"]
    others = measured(300, [0.12] * 8, 100)
    assert not significant([*pair, *others])[0, 1]


def test_rows_that_do_not_differ_are_seldom_told_apart():
    """Any false finding among the 45 pairs of ten rows: at most one table in twenty, but for chance."""
    found = sum(significant(measured(200, [0.0] * 10, seed)).any() for seed in range(100))
    assert found <= 10  # 5 expected at most; 11 or more have a probability of 1%
    assert all(significant(measured(200, [0.0, 1.0], seed))[0, 1] for seed in range(20))
