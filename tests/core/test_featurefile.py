"""Feature files: read as saved, hostile and damaged ones refused; what train and test share."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from deepnarrow.errors import InputError
from deepnarrow.transfer import featurefile


def test_labels_are_encoded_in_sorted_order_of_the_train_classes():
    y_train, y_test, classes = featurefile.encode_labels(np.array([30, -1, 7, 30]),
                                                         np.array([7, 30]))
    assert (y_train.tolist(), y_test.tolist(), classes.tolist()) == ([2, 0, 1, 2], [1, 2],
                                                                     [-1, 7, 30])
    with pytest.raises(InputError, match=r"label of example 1 has no train example \(got 8"):
        featurefile.encode_labels(np.array([7, 9]), np.array([7, 8, 10]))


def test_repeated_rows_are_counted():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 8))
    assert featurefile.count_repeated(x[:30], x[30:]) == 0
    assert featurefile.count_repeated(x[:30], np.concatenate([x[5:9], x[30:], x[5:6]])) == 5
    # As the probe sees them: in float32, and 0 is 0.
    assert featurefile.count_repeated(x[:30], x[:3].astype(np.float32)) == 3
    assert featurefile.count_repeated(np.zeros((2, 3)), -np.zeros((1, 3))) == 1
    assert featurefile.count_repeated(np.eye(3, dtype=np.uint8), np.eye(3)[:2]) == 2
    assert featurefile.count_repeated(x[:30] + 1e-3, x[:30]) == 0


def npy_bytes(descr, shape, payload=b""):
    """A .npy member with any header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + payload


def write_npz(path, x, y=None, compression=zipfile.ZIP_STORED):
    y = npy_bytes("<i8", (2,), bytes(16)) if y is None else y
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", x)
        archive.writestr("y.npy", y)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "u1"])
def test_arrays_are_read_as_saved(tmp_path, save, dtype):
    rng = np.random.default_rng(0)
    x, y = rng.integers(200, size=(5, 3)).astype(dtype), np.array([7, -2, 7, 9, 9])
    save(tmp_path / "a.npz", x=np.asfortranarray(x), y=y)
    x_read, y_read = featurefile.load_probe_arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(x_read, x)
    np.testing.assert_array_equal(y_read, y)


HUGE = 10**12
HOSTILE = {
    "claims 4 TB": (npy_bytes("<f4", (HUGE, 1)), "claims another size"),
    "claims 2^64 and more": (npy_bytes("<f4", (2**62, 2**62)), "claims another size"),
    "claims less than it has": (npy_bytes("<f4", (2, 1), bytes(12)), "claims another size"),
    "truncated": (npy_bytes("<f4", (2, 2), bytes(12)), "claims another size"),
    "negative size": (npy_bytes("<f4", (-2, -2), bytes(16)), "is no such array"),
    "no examples": (npy_bytes("<f4", (0, 2)), "is no such array (got float32 [0, 2]"),
    "three axes": (npy_bytes("<f4", (2, 1, 1), bytes(8)), "expected numbers [n, d]"),
    "scalar": (npy_bytes("<f4", (), bytes(4)), "is no such array"),
    "pickle": (npy_bytes("|O", (2, 1), b"cos\nsystem\n(S'exit 3'\ntR."), "got object [2, 1]"),
    "text": (npy_bytes("<U3", (2, 1), bytes(24)), "is no such array"),
    "no magic": (b"not an array", "has no readable header"),
    "empty": (b"", "has no readable header"),
    "header is no dict": (b"\x93NUMPY\x01\x00" + b"\x05\x00[1,2]", "has no readable header"),
    "header too deep": (b"\x93NUMPY\x01\x00" + b"\x10\x27" + b"(" * 10_000, "readable header"),
    "unknown version": (b"\x93NUMPY\x09\x00" + bytes(100), "has no readable header"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_arrays_are_refused(tmp_path, name):
    member, message = HOSTILE[name]
    write_npz(tmp_path / "x.npz", member)
    with pytest.raises(InputError) as error:
        featurefile.load_probe_arrays(tmp_path / "x.npz")
    assert message in str(error.value)
    assert str(tmp_path / "x.npz")[:100] in str(error.value)


def test_zip_bombs_are_refused(tmp_path):
    rows = 2_000_000
    write_npz(tmp_path / "x.npz", npy_bytes("<f4", (rows, 1), bytes(4 * rows)),
              compression=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "x.npz").stat().st_size < 20_000
    with pytest.raises(InputError, match="claims another size"):
        featurefile.load_probe_arrays(tmp_path / "x.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_are_refused_or_read_rightly(tmp_path, save):
    path = tmp_path / "x.npz"
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    save(path, x=x, y=np.array([0, 1, 0]))
    good = path.read_bytes()
    outcomes = {"refused": 0, "read": 0}
    for at in range(0, len(good), 5):
        for damaged in (good[:at], good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :]):
            path.write_bytes(damaged)
            try:
                x_read, y_read = featurefile.load_probe_arrays(path)
            except InputError:
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
                np.testing.assert_array_equal(x_read, x)
                np.testing.assert_array_equal(y_read, [0, 1, 0])
    assert outcomes["refused"] > len(good) / 5  # every truncation, and flips


@pytest.mark.parametrize(("arrays", "message"), [
    ({"x": np.ones((2, 2))}, "has no array 'y' (got x; expected x [n, d] and y [n])"),
    ({"features": np.ones((2, 2)), "y": np.zeros(2, int)}, "has no array 'x' (got features, y"),
    ({}, "has no array 'x' (got no arrays"),
    ({"x": np.ones((2, 2)), "y": np.zeros(3, int)}, "different lengths (got 2 and 3)"),
    ({"x": np.ones((2, 2)), "y": np.array([0, 0.5])}, "label of example 1 is not an integer"),
])
def test_wrong_arrays_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError) as error:
        featurefile.load_probe_arrays(tmp_path / "x.npz")
    assert message in str(error.value)


def test_what_is_no_npz_is_named(tmp_path):
    (tmp_path / "x.npz").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match="cannot be read"):
        featurefile.load_probe_arrays(tmp_path / "x.npz")
    for path in (tmp_path, tmp_path / "absent.npz"):
        with pytest.raises(InputError, match="is not a file"):
            featurefile.load_probe_arrays(path)
