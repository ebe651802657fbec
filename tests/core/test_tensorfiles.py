"""Safetensors files are read strictly: whole, finite in size, no pickle, no link, no surprise."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from deepnarrow.errors import InputError
from deepnarrow.tensorfiles import (
    read_arrays,
    read_headers,
    read_json,
    safetensors_files,
    write_safetensors,
)

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1.5], np.float32)}
SHARDS = ("model-1.safetensors", "model-2.safetensors")
INDEX = "model.safetensors.index.json"


@pytest.fixture
def whole(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", ARRAYS)
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    for file, name in zip(SHARDS, ARRAYS, strict=True):
        write_safetensors(tmp_path / file, {name: ARRAYS[name]})
    write_index(tmp_path, dict(zip(ARRAYS, SHARDS, strict=True)))
    return tmp_path


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def raw(header, body=b"", length=None):
    """A file with that header; `length` is what it says of the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_reads_what_was_written(kind, request):
    folder = request.getfixturevalue(kind)
    files = safetensors_files(folder)
    assert files == (("model.safetensors",) if kind == "whole" else (INDEX, *SHARDS))
    assert {n: h.shape for n, h in read_headers(folder, files).items()} == {"a": (2, 3), "b": (1,)}
    arrays = read_arrays(folder, files)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, ARRAYS[name])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_floats_become_float32(tmp_path, dtype):
    write_safetensors(tmp_path / "model.safetensors", {"a": np.array([1.0, -2.5], dtype)})
    array = read_arrays(tmp_path, safetensors_files(tmp_path))["a"]
    assert array.dtype == np.float32
    assert array.tolist() == [1.0, -2.5]


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 40, -1])
def test_files_cut_short_are_refused(whole, cut):
    path = whole / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="is no whole safetensors file"):
        read_headers(whole, ("model.safetensors",))


HUGE = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}


@pytest.mark.parametrize("content", [
    raw(HUGE), raw(b"{}", length=2**62), raw(b"{}", length=10**8 + 1), raw(b"{" * 100_000),
    raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4),
    raw({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, b"\0" * 8),
    raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
         "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    b"\x80\x04\x95", b"PK\x03\x04" + b"\0" * 100,
], ids=lambda c: f"{len(c)} bytes")
def test_headers_that_lie_are_refused_before_anything_is_allocated(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is no whole safetensors file"):
        read_headers(tmp_path, safetensors_files(tmp_path))


def test_integers_are_no_weights(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"a": np.arange(3)})
    with pytest.raises(InputError, match=r"a: is no array of floats \(got I64"):
        read_headers(tmp_path, safetensors_files(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickles_are_refused_with_the_remedy_and_never_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    (tmp_path / name).chmod(0)
    with pytest.raises(InputError, match=r"pickled weights.*save_pretrained"):
        safetensors_files(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(InputError, match=r"has no weights \(expected model.safetensors or"):
        safetensors_files(tmp_path)


@pytest.mark.parametrize(("weight_map", "message"), [
    ({"a": SHARDS[1], "b": SHARDS[1]}, "differ in 1 arrays, first a"),
    ({"a": SHARDS[1], "b": SHARDS[0]}, "differ in 2 arrays, first a"),
    ({"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}, r"first c.*got in no shard"),
    ({"a": SHARDS[0], "b": "model-3.safetensors"}, "model-3.safetensors': is missing"),
    ({"a": SHARDS[0], "b": "../other.safetensors"}, "outside of its folder"),
    ({"a": SHARDS[0], "b": "/other.safetensors"}, "outside of its folder"),
    ({}, "has no weight_map"), ({"a": 3}, "has no weight_map"),
])
def test_an_index_that_does_not_fit_its_shards_is_refused(sharded, weight_map, message):
    write_index(sharded, weight_map)
    with pytest.raises(InputError, match=message):
        read_headers(sharded, safetensors_files(sharded))


def test_an_array_in_two_shards_is_refused(sharded):
    write_safetensors(sharded / SHARDS[1], ARRAYS)
    with pytest.raises(InputError, match=r"has an array twice \(got a"):
        read_headers(sharded, safetensors_files(sharded))


def test_a_linked_file_is_refused(whole):
    (whole / "model.safetensors").rename(whole / "blob")
    (whole / "model.safetensors").symlink_to("blob")
    with pytest.raises(InputError, match="is a link"):
        read_headers(whole, safetensors_files(whole))


@pytest.mark.parametrize(("content", "message"), [
    (b"{", "is no JSON"), (b"\xff", "is no JSON"), (b"[1]", "is no JSON object"),
    (b"[" * 100_000, "is no JSON"),
])
def test_json_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(tmp_path, "config.json")
