"""The few-shot probe: big_vision's numbers, an independent ridge, a strength chosen, bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepnarrow.errors import InputError, Preempted
from deepnarrow.transfer import fewshot, ridge


def make_arrays(seed, num_classes, d, n_train, n_test, offset=1.0):
    """Gaussian classes whose features differ in scale and mean: x and y to train on, to test on."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_classes, d))
    scale, mean = rng.uniform(0.1, 10, size=d), offset * rng.normal(size=d)

    def split(n):
        y = rng.integers(num_classes, size=n)
        x = (0.6 * centers[y] + rng.normal(size=(n, d))) * scale + mean
        return x.astype(np.float32), y

    return *split(n_train), *split(n_test)


# Test examples classified rightly [l2, shots, seeds], by big_vision's own `compute_fewshot_metrics`
# (evaluators/fewshot_lsr.py at 0127fb6b, jax 0.10.2, CPU), run by hand on `make_arrays(*case)`, in
# float32 as it is and once more in float64: both gave these numbers.
SHOTS, SEEDS, L2 = (1, 5, 25), (0, 1, 2), (1024.0, 32768.0)
GOLDEN = {
    (0, 5, 16, 400, 500): [[[180, 219, 203], [344, 342, 382], [402, 380, 402]],
                           [[180, 218, 202], [344, 344, 379], [400, 376, 398]]],
    (1, 10, 96, 900, 500): [[[374, 367, 360], [491, 495, 491], [500, 498, 499]],
                            [[374, 365, 359], [489, 493, 490], [500, 498, 499]]],
}


@pytest.mark.parametrize("case", GOLDEN)
def test_equals_big_vision(case):
    x, y, x_test, y_test = make_arrays(*case)
    result = fewshot.probe(x, y, x_test, y_test, num_classes=case[1], shots=SHOTS, seeds=SEEDS,
                           l2=L2)
    np.testing.assert_array_equal(result.correct.sum(axis=-1), GOLDEN[case])
    np.testing.assert_array_equal(result.accuracy, np.array(GOLDEN[case]) / 500)
    assert (result.shots, result.seeds, result.l2) == (SHOTS, SEEDS, L2)


# Features of a small trained ViT and pixels, with more shots than features and fewer: written by
# benchmarks/bigvision_fewshot.py with big_vision at 0127fb6b, jax 0.10.2, CPU.
REAL = np.load(Path(__file__).parent / "golden_fewshot.npz")


def real_arrays(name):
    arrays = (REAL[f"{name}/{key}"] for key in ("x", "y", "x_test", "y_test"))
    return [a.astype(np.float32) if a.dtype == np.float16 else a for a in arrays]


@pytest.mark.parametrize("name", ["vit", "pixels"])
def test_equals_big_vision_on_real_features(name):
    arrays = real_arrays(name)
    result = fewshot.probe(*arrays, num_classes=5, shots=REAL["shots"].tolist(),
                           seeds=REAL["seeds"].tolist(), l2=REAL["l2"].tolist())
    hits = REAL[f"{name}/accuracy"] * len(arrays[3])
    assert hits.shape == (2, 4, 3)
    np.testing.assert_allclose(hits, hits.round(), atol=1e-4)  # shares of whole examples
    np.testing.assert_array_equal(result.correct.sum(axis=-1), hits.round())


@pytest.mark.parametrize("shots", [1, 25])
@pytest.mark.parametrize(("precision", "tolerance"), [(32, 1e-5), (64, 1e-12)])
@pytest.mark.parametrize("name", ["vit", "pixels"])
def test_weights_equal_big_visions(name, precision, tolerance, shots):
    x, y, _, _ = real_arrays(name)
    rows = np.concatenate([np.flatnonzero(y == c)[:shots] for c in range(5)])
    problem = ridge.whiten(x[rows], y[rows], 5)
    expected = REAL[f"{name}/weights{precision}@{shots}"]
    np.testing.assert_allclose(ridge.ridge_weights(problem, (1024.0,))[0], expected, rtol=0,
                               atol=tolerance)
    assert np.abs(expected).max() > 100 * tolerance


def solve_plainly(x, y, num_classes, l2):
    """The ridge as least squares with l2 as more rows, in float64: weights, mean and std."""
    x = x.astype(np.float64)
    mean = x.sum(0) / len(x)
    std = np.sqrt(((x - mean) ** 2).sum(0) / len(x)) + 1e-5
    z = np.hstack([(x - mean) / std, np.full((len(x), 1), 100.0)])
    targets = 2 * np.eye(num_classes)[y] - 1
    rows = np.vstack([z, l2**0.5 * np.eye(z.shape[1])])
    targets = np.vstack([targets, np.zeros((z.shape[1], num_classes))])
    return np.linalg.lstsq(rows, targets)[0], mean, std


@pytest.mark.parametrize("n", [8, 23, 24, 25, 200])
def test_weights_equal_plain_least_squares(n):
    x, y, _, _ = make_arrays(3, 4, 24, n, 1)
    l2 = (0.5, 1024.0, 1e5)
    problem = ridge.whiten(x, y, 4)
    weights = ridge.ridge_weights(problem, l2)
    assert weights.shape == (3, 25, 4)
    for strength, found in zip(l2, weights, strict=True):
        expected, mean_, std_ = solve_plainly(x, y, 4, strength)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(problem.mean, mean_, rtol=1e-12)
        np.testing.assert_allclose(problem.std, std_, rtol=1e-12)


def predict_plainly(x, y, x_test, num_classes, l2):
    weights, mean, std = solve_plainly(x, y, num_classes, l2)
    z = np.hstack([(x_test - mean) / std, np.full((len(x_test), 1), 100.0)])
    return (z @ weights).argmax(1)


@pytest.mark.parametrize("offset", [0.0, 1e6])  # 1e6: means far larger than the spread
def test_predictions_equal_the_plain_ridge(offset):
    x, y, x_test, y_test = make_arrays(4, 6, 20, 300, 250, offset)
    result = fewshot.probe(x, y, x_test, y_test, num_classes=6, shots=(2, 20), seeds=(5, 0),
                           l2=(16.0, 1024.0))
    for i, l2 in enumerate(result.l2):
        for j, shots in enumerate(result.shots):
            for k, seed in enumerate(result.seeds):
                rng = np.random.default_rng(seed)
                rows = np.concatenate([rng.permutation(np.where(y == c)[0])[:shots]
                                       for c in range(6)])
                expected = predict_plainly(x[rows], y[rows], x_test.astype(float), 6, l2) == y_test
                np.testing.assert_array_equal(result.correct[i, j, k], expected)
                assert result.accuracy[i, j, k] == expected.mean()


def test_chunks_change_nothing(monkeypatch):
    x, y, x_test, y_test = make_arrays(5, 3, 12, 100, 101)
    settings = {"num_classes": 3, "shots": (1, 4), "seeds": (0, 1, 2), "l2": (1.0, 8.0)}
    whole = fewshot.probe(x, y, x_test, y_test, **settings)
    monkeypatch.setattr(fewshot, "MAX_SCORES", 7 * 2 * 2 * 3)  # 7 rows a chunk
    monkeypatch.setattr(fewshot, "MAX_WEIGHTS", 2 * 2 * 3 * 12)  # 2 draws a pass
    np.testing.assert_array_equal(fewshot.probe(x, y, x_test, y_test, **settings).correct,
                                  whole.correct)


def test_draws_are_balanced_nested_and_seeded():
    y = np.random.default_rng(0).integers(4, size=80)
    drawn = ridge.draw_shots(y, 4, 10, seed=3)
    np.testing.assert_array_equal(y[drawn], np.repeat(np.arange(4), 10).reshape(4, 10))
    assert len(np.unique(drawn)) == 40
    np.testing.assert_array_equal(ridge.draw_shots(y, 4, 4, seed=3), drawn[:, :4])
    assert (ridge.draw_shots(y, 4, 10, seed=4) != drawn).any()


def test_features_constant_among_the_shots_have_no_say():
    x, y, x_test, y_test = make_arrays(6, 3, 10, 90, 60)
    dead, dead_test = x.copy(), x_test.copy()
    dead[:, 3], dead_test[:, 3] = 0.1, np.linspace(-50, 50, 60)
    settings = {"num_classes": 3, "shots": (1, 20), "seeds": (0, 1)}
    with_dead = fewshot.probe(dead, y, dead_test, y_test, **settings)
    without = fewshot.probe(np.delete(x, 3, 1), y, np.delete(x_test, 3, 1), y_test, **settings)
    np.testing.assert_array_equal(with_dead.correct, without.correct)


def test_baselines():
    assert fewshot.majority_accuracy(np.array([2, 2, 5]), np.array([2, 5, 2, 5, 2])) == 0.6
    assert fewshot.majority_accuracy(np.array([5, 2]), np.array([5, 2, 5])) == 1 / 3  # first class
    assert fewshot.chance(8) == 0.125


# --- bad input ------------------------------------------------------------------------------------
GOOD = {"x_train": np.ones((4, 2)), "y_train": np.array([0, 0, 1, 1]),
        "x_test": np.ones((3, 2)), "y_test": np.array([0, 1, 1]),
        "num_classes": 2, "shots": (1,), "seeds": (0,), "l2": (1.0,)}


def with_value(array, index, value):
    array = np.array(array, float)
    array[index] = value
    return array


@pytest.mark.parametrize(("change", "message"), [
    ({"shots": (2, 3)},
     "class 0 has too few train examples (got 2 examples; expected at least 3"),
    ({"num_classes": 3}, "class 2 has too few train examples (got 0 examples; expected at least 1"),
    ({"num_classes": 3, "class_names": ("cat", "dog", "eel")}, "class eel has too few"),
    ({"shots": (0,)}, "shots is out of range (got 0"),
    ({"shots": ()}, "shots is empty"),
    ({"shots": (1.5,)}, "shots are integers (got 1.5"),
    ({"seeds": ()}, "seeds is empty"),
    ({"seeds": (-1,)}, "seeds is out of range (got -1"),
    ({"l2": (0.0,)}, "l2 is out of range (got 0"),
    ({"l2": (1.0, float("nan"))}, "l2 is out of range (got nan"),
    ({"l2": ("best",)}, "l2 is unknown (got best; expected a number or auto"),
    ({"l2": (1e-9,)}, "l2 is out of range (got 1e-09"),
    ({"num_classes": 1}, "num_classes is out of range (got 1"),
    ({"y_train": np.array([0, 2, 5, 1])}, "train labels: label of example 1 is out of range (got"),
    ({"y_test": np.array([0, -1, 1])}, "test labels: label of example 1 is out of range (got -1"),
    ({"y_test": np.array([0, 1, 0.5])}, "label of example 2 is not an integer (got 0.5"),
    ({"y_test": np.array([0, np.nan, 1])}, "label of example 1 is not an integer (got nan"),
    ({"y_train": np.array(["a", "b", "a", "b"])}, "train labels: are not a list of integers"),
    ({"y_train": np.array([0, 1, 1])}, "train labels: are not as many as the examples (got 3"),
    ({"x_train": with_value(np.ones((4, 2)), (2, 1), np.nan)},
     "train features: example 2, feature 1 is not a finite float32 (got nan"),
    ({"x_test": with_value(np.ones((3, 2)), (0, 1), -np.inf)},
     "test features: example 0, feature 1 is not a finite float32 (got -inf"),
    ({"x_test": with_value(np.ones((3, 2)), (2, 0), 1e39)},
     "test features: example 2, feature 0 is not a finite float32 (got 1e+39"),
    ({"x_test": np.ones((3, 5))}, "not as wide as the train features (got d = 5; expected d = 2"),
    ({"x_test": np.ones(3)}, "test features: are not a matrix of numbers (got float64 [3]"),
    ({"x_train": np.ones((0, 2))}, "train features: are not a matrix of numbers"),
    ({"x_train": np.ones((4, 2), complex)}, "train features: are not a matrix of numbers"),
])
def test_bad_input_is_named(change, message):
    arguments = GOOD | change
    with pytest.raises(InputError) as error:
        fewshot.probe(**arguments)
    assert message in str(error.value)


def test_probing_does_not_import_jax():
    code = ("import sys, numpy as np; from deepnarrow.transfer.fewshot import probe\n"
            "x = np.eye(4); y = np.array([0, 0, 1, 1])\n"
            "print(probe(x, y, x, y, num_classes=2, shots=(2,)).accuracy.shape)\n"
            "assert 'jax' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 1, 3)\n"


# --- from a model ---------------------------------------------------------------------------------
def test_features_of_every_example_in_order(toy):
    modality, _ = toy
    source = modality.tasks(modality.data_options, modality.options)["toy_task"].examples("test")
    calls = []

    def features(params, batch):
        calls.append(len(batch["label"]))
        return params * batch["inputs"].reshape(len(batch["inputs"]), -1)

    x = fewshot.extract_features(features, 2.0, source, batch_size=16)
    assert calls == [16, 16, 16]  # 41 examples; the last batch is padded
    examples = [source.load(i, np.random.default_rng(0)) for i in range(41)]
    np.testing.assert_array_equal(x, [2 * e["inputs"].ravel() for e in examples])
    assert x.dtype == np.float32


def test_extracting_features_stops_when_asked(toy):
    modality, _ = toy
    source = modality.tasks(modality.data_options, modality.options)["toy_task"].examples("test")
    calls, answers = [], iter([False, False, True])

    def features(params, batch):
        calls.append(None)
        return batch["inputs"].reshape(len(batch["inputs"]), -1)

    with pytest.raises(Preempted):
        fewshot.extract_features(features, None, source, 16, lambda: next(answers))
    assert len(calls) == 2
