"""The choice of a ridge's strength: its closed form against refits, and what it depends on."""

from __future__ import annotations

import numpy as np
import pytest

from deepnarrow.transfer import fewshot, ridge


def make_shots(seed, num_classes, shots, d, spread=1.0):
    """Gaussian classes, `shots` examples of each in a row: x and y."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(num_classes), shots)
    return rng.normal(size=(num_classes, d))[y] + spread * rng.normal(size=(len(y), d)), y


def refit_without(problem, i, l2):
    """Squared error of shot i under the ridge of the others, as least squares with more rows."""
    z, targets = np.delete(problem.z, i, 0), np.delete(problem.targets, i, 0)
    d = z.shape[1]
    weights = np.linalg.lstsq(np.vstack([z, l2**0.5 * np.eye(d)]),
                              np.vstack([targets, np.zeros((d, targets.shape[1]))]))[0]
    return np.mean((problem.targets[i] - problem.z[i] @ weights) ** 2)


# More features than shots, as many (the bias counts as one), fewer; two classes and many.
@pytest.mark.parametrize(("num_classes", "shots", "d"), [
    (3, 4, 40), (3, 4, 12), (3, 4, 11), (3, 4, 10), (3, 20, 5), (2, 2, 7), (12, 2, 6), (5, 1, 9)])
def test_leave_one_out_equals_refits(num_classes, shots, d):
    problem = ridge.whiten(*make_shots(0, num_classes, shots, d), num_classes)
    l2 = (1.0, 64.0, 1024.0, 2.0**20)
    found = ridge.leave_one_out_errors(problem, l2)
    expected = [[refit_without(problem, i, s) for i in range(len(problem.z))] for s in l2]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_smallest_error_chooses():
    x, y = make_shots(4, 3, 6, 9, spread=2.0)
    problem = ridge.whiten(x, y, 3)
    errors = [np.mean([refit_without(problem, i, s) for i in range(len(x))]) for s in ridge.L2_GRID]
    assert 0 < np.argmin(errors) < len(errors) - 1
    assert ridge.choose_l2(problem) == ridge.L2_GRID[np.argmin(errors)]


def test_the_grid_is_powers_of_two_with_big_visions_strength():
    assert 2.0**10 in ridge.L2_GRID
    assert sorted(set(ridge.L2_GRID)) == list(ridge.L2_GRID)
    assert {np.frexp(l2)[0] for l2 in ridge.L2_GRID} == {0.5}


@pytest.mark.parametrize("shots", [5, 25])
def test_wider_features_get_a_stronger_ridge(shots):
    # Copies of the features multiply every eigenvalue, so what they leave of the ridge is the same
    # with a strength as many times larger; the bias has no copy, and hardly any ridge either.
    x, y = make_shots(1, 4, shots, 16, spread=1.5)
    l2 = np.array([4.0, 64.0, 1024.0])
    once = ridge.leave_one_out_errors(ridge.whiten(x, y, 4), l2)
    copied = ridge.leave_one_out_errors(ridge.whiten(np.tile(x, 16), y, 4), 16 * l2)
    np.testing.assert_allclose(copied, once, rtol=0.15)
    chosen = [ridge.choose_l2(ridge.whiten(np.tile(x, copies), y, 4)) for copies in (1, 16, 256)]
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[-1]


def test_the_scale_of_the_features_and_the_order_of_the_shots_change_nothing():
    x, y = make_shots(2, 5, 6, 20)
    chosen = ridge.choose_l2(ridge.whiten(x, y, 5))
    order = np.random.default_rng(0).permutation(len(y))
    scale = np.random.default_rng(1).uniform(0.1, 100, size=20)
    for x_, y_ in ((x[order], y[order]), (x * scale + 7, y), (x, 4 - y)):
        assert ridge.choose_l2(ridge.whiten(x_, y_, 5)) == chosen


def test_noise_gets_a_stronger_ridge_than_signal():
    clear, noisy = (ridge.choose_l2(ridge.whiten(*make_shots(3, 4, 10, 30, spread), 4))
                    for spread in (0.1, 10.0))
    assert clear < noisy


@pytest.mark.parametrize("d", [8, 32, 256])
def test_at_one_shot_the_features_hardly_matter(d):
    chosen = {ridge.choose_l2(ridge.whiten(*make_shots(seed, 10, 1, d, spread), 10))
              for seed, spread in ((0, 0.1), (1, 1.0), (2, 10.0))}
    assert chosen == {2.0**12}


# --- within the probe ----------------------------------------------------------------------------
def make_task(seed=0, d=24, n_test=200):
    x, y = make_shots(seed, 4, 30 + n_test // 4, d, spread=2.0)
    test = np.arange(len(y)) % (30 + n_test // 4) >= 30
    return x[~test], y[~test], x[test], y[test]


SETTINGS = {"num_classes": 4, "shots": (1, 2, 8), "seeds": (0, 1, 2)}


def test_auto_is_the_probe_with_the_strength_chosen_from_the_draw():
    x, y, x_test, y_test = make_task()
    result = fewshot.probe(x, y, x_test, y_test, l2=(1024.0, "auto"), **SETTINGS)
    assert result.l2 == (1024.0, "auto")
    assert (result.strength[0] == 1024).all()
    for i, shots in enumerate(result.shots):
        for j, seed in enumerate(result.seeds):
            rows = ridge.draw_shots(y, 4, shots, seed).ravel()
            chosen = ridge.choose_l2(ridge.whiten(x[rows].astype(np.float32), y[rows], 4))
            assert result.strength[1, i, j] == chosen
            alone = fewshot.probe(x, y, x_test, y_test, num_classes=4, shots=(shots,),
                                  seeds=(seed,), l2=(chosen,))
            np.testing.assert_array_equal(result.correct[1, i, j], alone.correct[0, 0, 0])
    fixed = fewshot.probe(x, y, x_test, y_test, l2=(1024.0,), **SETTINGS)
    np.testing.assert_array_equal(result.correct[0], fixed.correct[0])
    assert (result.correct[1] != fixed.correct[0]).any()


def test_auto_looks_at_neither_the_test_split_nor_at_what_was_not_drawn():
    x, y, x_test, y_test = make_task()
    chosen = fewshot.probe(x, y, x_test, y_test, l2=("auto",), **SETTINGS).strength
    rng = np.random.default_rng(0)
    others = (
        (x, y, x_test, rng.permutation(y_test)),
        (x, y, rng.normal(size=(7, x.shape[1])), y_test[:7]),
    )
    for arrays in others:
        np.testing.assert_array_equal(
            fewshot.probe(*arrays, l2=("auto",), **SETTINGS).strength, chosen)
    drawn = np.unique(np.concatenate([ridge.draw_shots(y, 4, 8, s).ravel() for s in (0, 1, 2)]))
    disturbed = 100 * rng.normal(size=x.shape)
    disturbed[drawn] = x[drawn]
    assert len(drawn) < len(x)
    np.testing.assert_array_equal(
        fewshot.probe(disturbed, y, x_test, y_test, l2=("auto",), **SETTINGS).strength, chosen)


def test_auto_gives_the_same_twice():
    arrays = make_task()
    one, two = (fewshot.probe(*arrays, l2=("auto",), **SETTINGS) for _ in range(2))
    np.testing.assert_array_equal(one.strength, two.strength)
    np.testing.assert_array_equal(one.correct, two.correct)


def test_a_ridge_so_strong_that_classes_nearly_tie_still_ranks_them():
    x, y, x_test, y_test = make_task()
    result = fewshot.probe(x, y, x_test, y_test, num_classes=4, shots=(8,), seeds=(0,), l2=(2**40,))
    rows = ridge.draw_shots(y, 4, 8, 0).ravel()
    problem = ridge.whiten(x[rows].astype(np.float32), y[rows], 4)
    # In the limit the weights are z't / l2; the bias is the same for every class.
    scores = (x_test - problem.mean) / problem.std @ (problem.z[:, :-1].T @ problem.targets)
    np.testing.assert_array_equal(result.correct[0, 0, 0], scores.argmax(1) == y_test)
