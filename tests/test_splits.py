"""Copies of a row, and rows of one group, stay on one side of every split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradlogp import InputError, ScoreDensity
from gradlogp.data import detect_grid
from gradlogp.estimators import density
from gradlogp.estimators.splits import deal, folds, row_labels
from gradlogp.models import GaussianReference
from gradlogp.training import NoiseLevels
from gradlogp.training.levels import fisher_scale


def labels_of(values, groups=None):
    return row_labels(np.asarray(values, dtype=float), detect_grid(values), groups)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 2, 2)])
def test_copies_share_a_label(rng, shape):
    x = np.repeat(rng.normal(size=(60, *shape)), 5, axis=0)
    x = x[rng.permutation(300)]
    labels = labels_of(x)
    assert len(np.unique(labels)) == 60
    flat = x.reshape(300, -1)
    same = (flat[:, None] == flat[None]).all(2)
    assert np.array_equal(labels[:, None] == labels[None], same)


def test_zeros_of_either_sign_are_copies(rng):
    x = np.concatenate([rng.normal(size=(30, 2)), [[0.0, 1.5], [-0.0, 1.5]]])
    labels = labels_of(x)
    assert len(np.unique(labels)) == 31
    assert labels[-1] == labels[-2]


def test_of_very_many_rows_runs_show_an_order(rng, monkeypatch):
    monkeypatch.setattr(density, "ORDER_ROWS", 1000)
    drift, labels = torch.linspace(0, 2, 5003)[:, None], np.arange(5003)
    plain = torch.from_numpy(rng.normal(size=(5003, 2)))
    slow = torch.from_numpy(np.convolve(rng.normal(size=5006), np.ones(4), "valid"))[:, None]
    assert not density._ordered(plain, labels)
    assert density._ordered(plain + drift, labels)
    assert density._ordered(slow, labels)


def test_ties_of_counts_of_zeros_and_of_categories_are_no_copies(rng):
    counts = rng.poisson([1.0, 3.0], size=(400, 2)).astype(float)
    rain = rng.gamma(2.0, size=(400, 2)) * (rng.random((400, 2)) < 0.6)
    categories = np.eye(5)[rng.integers(0, 5, 400)]
    few = np.c_[counts, rain[:, :1] > 0]
    for x in (counts, rain, categories, few, rng.integers(0, 30, (400, 1)).astype(float)):
        assert len(np.unique(x, axis=0)) < 400
        assert np.array_equal(labels_of(x), np.arange(400))


def test_groups_alone_decide_where_they_are_given(rng):
    x = rng.normal(size=(6, 2))
    x[4] = x[0]  # a default row of two groups does not join them
    labels, want = labels_of(x, ["a", "a", "b", "c", "b", "d"]), np.array([0, 0, 1, 2, 1, 3])
    assert np.array_equal(labels[:, None] == labels, want[:, None] == want)


def test_ties_of_answers_that_depend_on_each_other_are_no_copies(rng):
    common = rng.normal(size=(600, 1))
    answers = np.clip(np.rint(3 + 1.2 * common + 0.5 * rng.normal(size=(600, 5))), 1, 5)
    assert len(np.unique(answers, axis=0)) < 300
    assert np.array_equal(labels_of(answers), np.arange(600))


@pytest.mark.parametrize(
    ("groups", "message"),
    [([1, 2], "groups: got shape"), ([1.0, np.nan, 2.0], "no label at row 1"), (["a", None, "b"], "no label at row 1"),
     ([[1], [2], [3]], "groups: got shape")],
)  # fmt: skip
def test_groups_that_are_none(rng, groups, message):
    with pytest.raises(InputError, match=message):
        labels_of(rng.normal(size=(3, 2)), groups)


def test_different_rows_are_split_as_by_one_permutation():
    order, cut = deal(np.arange(50), 7, torch.Generator().manual_seed(3))
    assert torch.equal(order, torch.randperm(50, generator=torch.Generator().manual_seed(3)))
    assert cut == 7


def test_no_label_is_on_both_sides_and_the_first_side_is_as_large_as_asked(rng):
    labels = np.unique(rng.integers(0, 40, 200), return_inverse=True)[1]
    for seed in range(20):
        order, cut = deal(labels, 20, torch.Generator().manual_seed(seed))
        assert sorted(order.tolist()) == list(range(200))
        assert not set(labels[order[:cut]]) & set(labels[order[cut:]])
        assert 20 <= cut <= 40
        assert len(np.unique(labels[order[:cut]])) >= 4


def test_a_large_group_is_not_held_out():
    labels = np.r_[np.zeros(60, int), np.arange(1, 41)]
    cuts = [deal(labels, 10, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert all(cut == 10 and not (labels[order[:cut]] == 0).any() for order, cut in cuts)
    order, cut = deal(np.r_[np.zeros(99, int), 1], 10, torch.Generator().manual_seed(0))
    assert (cut, int(order[0])) == (1, 99)


def test_one_label_cannot_be_split():
    with pytest.raises(InputError, match="want at least 2"):
        deal(np.zeros(10, dtype=int), 2, torch.Generator())


def test_two_groups_are_one_each():
    order, cut = deal(np.array([0] * 30 + [1] * 10), 2, torch.Generator().manual_seed(0))
    assert cut in (10, 30)
    assert len(order) == 40


def test_folds_are_even_and_hold_whole_labels(rng):
    assert torch.bincount(folds(np.arange(89), 5, torch.Generator().manual_seed(0))).tolist() == [18, 18, 18, 18, 17]
    labels = np.unique(rng.integers(0, 40, 200), return_inverse=True)[1]
    fold = folds(labels, 5, torch.Generator().manual_seed(0)).numpy()
    assert all(len(np.unique(fold[labels == k])) == 1 for k in range(labels.max() + 1))
    assert np.bincount(fold).min() > 30
    uneven = np.r_[np.zeros(60, int), np.ones(20, int), np.arange(2, 22)]
    sizes = torch.bincount(folds(uneven, 10, torch.Generator().manual_seed(0))).tolist()
    assert sorted(sizes) == [2, 2, 2, 2, 3, 3, 3, 3, 20, 60]


def test_the_smallest_level_is_not_that_of_copies(rng):
    x = torch.from_numpy(rng.normal(size=(64, 2)))
    copies = x.repeat_interleave(4, 0)
    assert fisher_scale(copies, 2) == fisher_scale(x, 2)
    gaussian = GaussianReference.of_data(x)
    alone, copied = (NoiseLevels.of_rows(rows, gaussian).sigma_min for rows in (x, copies))
    assert copied == pytest.approx(alone, rel=1e-3)


def test_copies_are_held_out_together(rng):
    x = np.repeat(rng.normal(size=(60, 2)), 5, axis=0)
    est = ScoreDensity(random_state=0, n_steps=1, width=8, depth=1, verbose=False).fit(x)
    assert est.n_held_out_ == 30
    held_out = est.from_model(est._unseen.rows)
    assert len(np.unique(held_out.round(5), axis=0)) == 6


def test_groups_are_held_out_together(rng):
    x, groups = rng.normal(size=(60, 2)), np.repeat(list("abcdef"), 10)
    x[:, 0] += 100 * (groups == "c")
    est = ScoreDensity(random_state=0, n_steps=1, width=8, depth=1, verbose=False).fit(x, groups=groups)
    assert est.n_held_out_ == 20
    assert len(np.unique(groups[[np.abs(x - row).sum(1).argmin() for row in est.from_model(est._unseen.rows)]])) == 2
