"""Every kind of source opened by its line: splits, labels, hashes, bad files; tasks on them."""

from __future__ import annotations

import io
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from image_files import encode, idx_bytes, pixels, write_folder, write_idx
from PIL import Image

from deepnarrow.config import resolve_options
from deepnarrow.data import TrainStream
from deepnarrow.errors import InputError
from deepnarrow_vision_vit import imageindex, splits
from deepnarrow_vision_vit.dataoptions import default_data_options
from deepnarrow_vision_vit.images import decode, to_pixels
from deepnarrow_vision_vit.options import default_options
from deepnarrow_vision_vit.readers import open_set
from deepnarrow_vision_vit.tasks import tasks, upstream

TFDS = pathlib.Path(__file__).with_name("tiny_tfds")
WHOLE = {"train": "train", "validation": "test"}  # defaults by hash would leave few images out


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNARROW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def data(**changes):
    return resolve_options(default_data_options(), changes, "data")


def examples(source, seed=0):
    return [source.load(i, np.random.default_rng([seed, i])) for i in range(source.num_examples)]


def error_of(call):
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


# --- every kind of source -------------------------------------------------------------------------
def make_folder(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path / "set" / split, ("ant", "bee", "cat", "dog"), count=5,
                     seed=len(split))
    return f"folder:{tmp_path}/set"


def make_idx(tmp_path):
    write_idx(tmp_path / "set")
    return f"idx:{tmp_path}/set"


def make_npz(tmp_path):
    arrays = {}
    for seed, split in enumerate(("train", "test")):
        arrays |= {f"{split}_images": pixels(20, seed=seed), f"{split}_labels": np.arange(20) % 4}
    np.savez(tmp_path / "set.npz", **arrays)
    return f"npz:{tmp_path}/set.npz"


def make_parquet(tmp_path):
    (tmp_path / "set").mkdir()
    for seed, split in enumerate(("train", "test")):
        images = [{"bytes": encode(image), "path": None} for image in pixels(20, seed=seed)]
        pq.write_table(pa.table({"image": images, "label": np.arange(20) % 4}),
                       tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    return f"parquet:{tmp_path}/set"


def make_tfds(tmp_path):
    return f"tfds:{TFDS}/array_record"


KINDS = {"folder": make_folder, "idx": make_idx, "npz": make_npz, "parquet": make_parquet,
         "tfds": make_tfds}


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_takes_one_line(kind, tmp_path):
    line = KINDS[kind](tmp_path)
    splits = {"train": "train", "validation": "validation" if kind == "folder" else "test"}
    found = upstream(data(upstream=line, image_size=8, **splits), default_options())
    channels = 1 if kind == "idx" else 3
    assert found.options == {"image_size": 8, "channels": channels, "num_classes": 4}
    for source in (found.train, found.validation):
        labels = source.labels()
        assert len(labels) == source.num_examples > 0
        for example, label in zip(examples(source), labels, strict=True):
            assert example["image"].shape == (8, 8, channels)
            assert example["image"].dtype == np.float32
            assert -1 <= example["image"].min() <= example["image"].max() <= 1
            assert example["label"] == label


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_takes_one_line(kind, tmp_path):
    line = KINDS[kind](tmp_path)
    test = "validation" if kind == "folder" else "test"
    options = data(transfer={"line": line, "table": {
        "source": line, "train": "train[:75%]", "validation": "train[75%:]", "test": test}})
    found = tasks(options, default_options())
    assert found["line"].kinds == {"few_shot", "fine_tune"}
    task = found["table"]
    assert task.num_classes == 4
    assert task.options == {"num_classes": 4}
    # Converted to what the embedded upstream's model takes: 12 x 12, grey.
    for split in ("train", "validation", "test"):
        for example in examples(task.examples(split)):
            assert example["image"].shape == (12, 12, 1)
    assert task.baseline("test").shape == (task.examples("test").num_examples, 144)


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_labels_are_the_stored_ones(kind, tmp_path):
    pools = open_set(KINDS[kind](tmp_path)).pools
    pool = pools["train"]
    labels, index = pool.labels(), pool.index()
    stored = [to_pixels(decode(pool.read(i), 3)) for i in range(len(labels))]
    if kind == "folder":
        images = pixels(20, seed=5)
        expected = {images[i].tobytes(): i % 4 for i in range(20)}
    elif kind == "tfds":
        y, x, c = np.ogrid[:8, :8, :3]
        expected = {((16 * i + y + x + 40 * c) % 256).astype(np.uint8).tobytes(): i % 4
                    for i in range(12)}
    else:
        channels = 1 if kind == "idx" else 3
        images = np.broadcast_to(pixels(20, channels=channels, seed=0), (20, 8, 8, 3))
        expected = {np.ascontiguousarray(images[i]).tobytes(): i % 4 for i in range(20)}
    assert {image.tobytes(): int(label) for image, label in zip(stored, labels, strict=True)
            } == expected
    assert index.hashes.shape == (len(labels), 32)
    assert (index.sizes == 8).all()


def test_digits_are_a_set_of_their_own(tmp_path):
    line = make_idx(tmp_path)
    task = tasks(data(upstream=line, transfer={"digits": "digits"}), default_options())["digits"]
    counts = [task.examples(s).num_examples for s in ("train", "validation", "test")]
    assert sum(counts) == 1797
    assert task.num_classes == 10
    assert np.bincount(task.examples("train").labels()).min() >= 25


def test_tensorflow_and_jax_stay_out(tmp_path):
    code = ("import sys\n"
            "from deepnarrow_vision_vit.readers import open_set\n"
            f"pool = open_set('tfds:{TFDS}/array_record').pools['train']\n"
            "assert len(pool.read(0)) and pool.index().problems[0] == ''\n"
            "sys.exit(any(m in sys.modules for m in ('tensorflow', 'jax')))\n")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_wrong_lines_are_named(tmp_path):
    assert "did you mean folder" in error_of(lambda: open_set("foldr:/x"))
    assert "there is no such file" in error_of(lambda: open_set("idx:/nowhere/fashion_mnist"))
    assert "digits, or one of tfds:PATH" in error_of(lambda: open_set("imagenet"))
    assert "did you mean digits" in error_of(lambda: open_set("digit"))


def test_tfrecord_is_refused_with_the_remedy():
    said = error_of(lambda: open_set(f"tfds:{TFDS}/tfrecord"))
    assert "random access" in said
    assert "--file_format=array_record" in said
    assert "dataset_info.json" in error_of(lambda: open_set(f"tfds:{TFDS}"))


# --- splits ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["train[:90%]", "train[90%:]", "train[3:7]", "train[-4:]",
                                  "train[25%:75%]", "train[:-2]", "train[-33%:]", "train"])
@pytest.mark.parametrize("size", [10, 97])
def test_slices_are_tensorflow_datasets_slices(text, size):
    infos = {"train": tfds.core.SplitInfo(
        name="train", shard_lengths=[size], num_bytes=0, filename_template=None)}
    instruction = tfds.core.ReadInstruction.from_spec(text).to_absolute(infos)[0]
    rows = splits.split_rows(splits.parse_split(text, "x", infos), None, size, "x")
    assert rows.tolist() == list(range(instruction.from_ or 0, size if instruction.to is None
                                       else instruction.to))


@pytest.mark.parametrize(("text", "said"), [
    ("tran", ["no such split", "did you mean train"]),
    ("train[:90]", ["out of range", "-20..20"]),
    ("train[:101%]", ["out of range", "per cent"]),
    ("train[5:5]", ["empty"]),
    ("train[a:b]", ["is no split", "train[:90%]"]),
    ("train[:5][2:]", ["is no split"]),
    ("hash(train)[:5]", ["per cent"]),
], ids=str)
def test_bad_splits_are_named(text, said, tmp_path):
    options = data(upstream=make_idx(tmp_path), train=text, validation="test")
    message = error_of(lambda: upstream(options, default_options()))
    assert "train" in message
    for words in said:
        assert words in message


def test_all_splits_or_none(tmp_path):
    options = data(upstream=make_idx(tmp_path), train="train[:50%]")
    assert "name all splits or none" in error_of(lambda: upstream(options, default_options()))


def test_slices_by_hash_part_the_images_whatever_their_order(tmp_path):
    line = make_npz(tmp_path)
    parts = []
    for text in ("hash(train)[:40%]", "hash(train)[40%:]"):
        source = upstream(data(upstream=line, train=text, validation="test"),
                          default_options()).train
        parts.append({e["image"].tobytes() for e in examples(source)})
    assert len(parts[0] | parts[1]) == 20
    assert not parts[0] & parts[1]
    with np.load(tmp_path / "set.npz") as arrays:
        turned = {name: array[::-1] for name, array in arrays.items()}
    np.savez(tmp_path / "turned.npz", **turned)
    source = upstream(data(upstream=f"npz:{tmp_path}/turned.npz", train="hash(train)[:40%]",
                           validation="test"), default_options()).train
    assert {e["image"].tobytes() for e in examples(source)} == parts[0]


def test_a_slice_of_a_class_folder_holds_every_class(tmp_path):
    write_folder(tmp_path / "set", ("ant", "bee"), count=40)
    found = upstream(data(upstream=f"folder:{tmp_path}/set", train="all[:50%]",
                          validation="all[50%:]"), default_options())
    assert np.bincount(found.train.labels()).min() > 10
    assert found.train.num_examples == found.validation.num_examples == 40
    both = [{e["image"].tobytes() for e in examples(s)} for s in (found.train, found.validation)]
    assert not both[0] & both[1]


def test_shared_images_are_reported(tmp_path):
    line = make_npz(tmp_path)
    options = data(upstream=line, train="train[:15]", validation="train[10:]")
    with pytest.warns(UserWarning, match="train and validation share 5 images"):
        upstream(options, default_options())
    options = data(upstream=line, **WHOLE, transfer={"mine": {
        "source": line, "train": "test[:5]", "test": "train"}})
    task = tasks(options, default_options())["mine"]
    assert task.kinds == {"few_shot"}
    with pytest.warns(UserWarning, match="test and upstream's train share 20 images"):
        task.examples("test")


def test_default_splits():
    """By what is stored: official splits are kept, what is missing is parted off by content."""
    assert splits.default_upstream(["train", "validation", "test"], "x") == {
        "train": "train", "validation": "validation"}
    assert splits.default_transfer(["train", "validation", "test"], "x") == {
        "train": "train", "validation": "validation", "test": "test"}
    assert splits.default_transfer(["train", "test"], "x") == {
        "train": "hash(train)[:90%]", "validation": "hash(train)[90%:]", "test": "test"}
    assert splits.default_transfer(["train", "validation"], "x")["test"] == "validation"
    assert "name the splits" in error_of(lambda: splits.default_transfer(["test"], "x"))


# --- hashes ---------------------------------------------------------------------------------------
def test_the_hash_is_of_the_content_and_the_preprocessing(tmp_path):
    line = make_parquet(tmp_path)
    def train_hash(line, **changes):
        return upstream(data(upstream=line, **changes), default_options()).train.content_hash

    base = train_hash(line)
    shutil.copytree(tmp_path / "set", tmp_path / "moved")
    assert train_hash(f"parquet:{tmp_path}/moved") == base
    others = [train_hash(line, train="train", validation="test"), train_hash(line, image_size=4),
              train_hash(line, channels=1), train_hash(line, mixup=0.2),
              train_hash(line, train_pp=({"op": "flip"}, {"op": "value_range"}))]
    assert len({base, *others}) == 6


def test_the_index_is_kept_and_reads_only_what_changed(tmp_path, monkeypatch):
    write_folder(tmp_path / "set")
    calls = []
    real = imageindex.inspect
    monkeypatch.setattr(imageindex, "inspect", lambda d: calls.append(1) or real(d))

    def build():
        open_set.cache_clear()
        return open_set(f"folder:{tmp_path}/set").pools["all"].index()

    first = build()
    assert len(calls) == 12
    again = build()
    assert len(calls) == 12
    assert np.array_equal(first.hashes, again.hashes)
    changed = tmp_path / "set" / "ant" / "0.png"
    changed.write_bytes(encode(pixels(1, seed=9)[0]) + b"\0" * 7)
    assert (build().hashes != first.hashes).any(axis=1).sum() == 1
    assert len(calls) == 13
    (index_file,) = (tmp_path / "cache" / "vision_vit").iterdir()
    index_file.write_bytes(b"PAR1 cut off")
    build()
    assert len(calls) == 25


def test_an_example_depends_on_seed_and_position_alone(tmp_path):
    options = data(upstream=make_folder(tmp_path), mixup=0.3, train_pp=(
        {"op": "inception_crop", "size": 8}, {"op": "flip"}, {"op": "value_range"}),
        eval_pp=({"op": "value_range"},))
    source = upstream(options, default_options()).train
    with TrainStream(source, seed=3, batch_size=4) as stream:
        batches = [next(stream) for _ in range(6)]
    with TrainStream(source, seed=3, batch_size=4, start_step=4) as stream:
        late = next(stream)
    for name, array in late.items():
        assert np.array_equal(array, batches[4][name])
    assert not np.array_equal(batches[0]["image"], batches[1]["image"])


# --- mixup ----------------------------------------------------------------------------------------
def test_mixup_mixes_two_training_images(tmp_path):
    line = make_npz(tmp_path)
    mixed = upstream(data(upstream=line, train="train", validation="test", mixup=0.5),
                     default_options())
    plain = upstream(data(upstream=line, train="train", validation="test"), default_options())
    images = np.stack([e["image"] for e in examples(plain.train)])
    labels, weights = plain.train.labels(), []
    for i, example in enumerate(examples(mixed.train, seed=4)):
        weight, rest = example["label_weight"], 1 - example["label_weight"]
        weights.append(weight)
        partners = np.abs(weight * images[i] + rest * images - example["image"]).max(axis=(1, 2, 3))
        assert partners.min() < 1e-5
        assert labels[int(partners.argmin())] == example["partner_label"] or rest < 1e-5
        assert example["label"] == labels[i]
    assert 0.5 <= min(weights) < max(weights) <= 1
    assert "partner_label" not in mixed.validation.load(0, np.random.default_rng(0))


def test_mixups_weights_are_those_of_its_distribution(tmp_path):
    options = data(upstream=make_npz(tmp_path), mixup=0.2, **WHOLE)
    source = upstream(options, default_options()).train
    weights = [source.load(0, np.random.default_rng(seed))["label_weight"] for seed in range(3000)]
    draws = np.random.default_rng(0).beta(0.2, 0.2, 100_000)
    expected = np.maximum(draws, 1 - draws)
    assert abs(np.mean(weights) - expected.mean()) < 4 * expected.std() / 3000**0.5


# --- bad files ------------------------------------------------------------------------------------
def folder_with(tmp_path, name, content):
    write_folder(tmp_path / "set", ("ant", "bee"), count=10)
    (tmp_path / "set" / name).write_bytes(content)
    return data(upstream=f"folder:{tmp_path}/set", image_size=8)


def image_file(mode, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(pixels(1, size=32)[0]).convert(mode).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(("name", "content", "said"), [
    ("ant/x.jpg", image_file("RGB", "JPEG")[:500], ["1 of", "ant/x.jpg", "runcated", "skip"]),
    ("ant/x.jpg", b"", ["ant/x.jpg", "is no JPEG and no PNG"]),
    ("bee/x.jpg", image_file("RGB", "GIF"), ["bee/x.jpg", "is no JPEG and no PNG"]),
    ("ant/p.png", image_file("P"), ["ant/p.png", "mode P", "convert=('palette',)"]),
    ("ant/a.png", image_file("RGBA"), ["ant/a.png", "RGBA", "convert=('alpha',)"]),
    ("ant/c.jpg", image_file("CMYK", "JPEG"), ["ant/c.jpg", "CMYK", "convert=('cmyk',)"]),
    ("ant/i.png", image_file("I;16"), ["ant/i.png", "16-bit", "convert=('sixteen_bit',)"]),
    ("ant/notes.txt", b"x", ["ant/notes.txt", "no images", ".jpg .jpeg .png"]),
], ids=lambda v: v if isinstance(v, str) else "")
def test_bad_images_are_named(tmp_path, name, content, said):
    options = folder_with(tmp_path, name, content)
    message = error_of(lambda: upstream(options, default_options()))
    for words in said:
        assert words in message


def test_every_bad_image_is_counted(tmp_path):
    write_folder(tmp_path / "set", ("ant", "bee"), count=20)
    for i in range(8):
        (tmp_path / "set" / "ant" / f"bad{i}.jpg").write_bytes(b"\xff\xd8")
    line = {"upstream": f"folder:{tmp_path}/set", "train": "all", "validation": "all[:20]"}
    message = error_of(lambda: upstream(data(**line), default_options()))
    assert "8 of 48 images cannot be used" in message
    assert "and 3 more" in message
    with pytest.warns(UserWarning, match="left out|share") as caught:
        found = upstream(data(**line, corrupt="skip"), default_options())
    assert "8 of 48 images cannot be used" in str(caught[0].message)
    assert found.train.num_examples == 40
    assert len(examples(found.train)) == 40


def test_an_image_that_changes_after_its_check_is_named(tmp_path):
    write_folder(tmp_path / "set", count=10)
    source = upstream(data(upstream=f"folder:{tmp_path}/set"), default_options()).train
    for file in (tmp_path / "set").rglob("*.png"):
        file.write_bytes(b"\x89PNG")
    assert "ant/" in error_of(lambda: examples(source)) or "bee/" in error_of(
        lambda: examples(source))


def test_a_link_to_nowhere_is_named(tmp_path):
    write_folder(tmp_path / "set")
    (tmp_path / "set" / "ant" / "gone.png").symlink_to(tmp_path / "moved" / "gone.png")
    message = error_of(lambda: upstream(data(upstream=f"folder:{tmp_path}/set"), default_options()))
    assert "cannot read ant/gone.png: No such file" in message


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "homely", ("ant", "bee"))
    assert open_set("folder:~/homely").num_classes == 2


def test_empty_and_odd_folders_are_named(tmp_path):
    write_folder(tmp_path / "set")
    (tmp_path / "set" / "cat").mkdir()
    assert "cat/ is empty" in error_of(lambda: open_set(f"folder:{tmp_path}/set"))
    write_folder(tmp_path / "one", ("ant",))
    assert "at least 2 classes" in error_of(lambda: open_set(f"folder:{tmp_path}/one"))
    write_folder(tmp_path / "odd" / "train")
    (tmp_path / "odd" / "other").mkdir()
    assert "splits and other folders" in error_of(lambda: open_set(f"folder:{tmp_path}/odd"))


@pytest.mark.parametrize(("labels", "said"), [
    (np.arange(12) - 1, ["label 0 is out of range", "-1", "integers from 0 up"]),
    (np.array([0.5] + [1.0] * 11), ["label 0", "0.5"]),
    (np.array([np.nan] + [1.0] * 11), ["label 0", "nan"]),
    (np.array([2**40] + [1] * 11), ["label 0", str(2**40)]),
    (np.array([0, 3] * 6), ["class 1 has no image"]),
    (np.zeros(12, int), ["one class only"]),
    (np.arange(11), ["12 images, 11 labels"]),
    (np.zeros((12, 4)), ["no list of integers"]),
], ids=str)
def test_bad_labels_are_named(tmp_path, labels, said):
    np.savez(tmp_path / "set.npz", images=pixels(12), labels=labels)
    message = error_of(lambda: open_set(f"npz:{tmp_path}/set.npz"))
    for words in said:
        assert words in message


def test_a_label_above_the_declared_classes_is_named(tmp_path):
    folder = tmp_path / "three"
    shutil.copytree(TFDS / "array_record", folder)
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "3"
    (folder / "features.json").write_text(json.dumps(features))
    options = data(upstream=f"tfds:{folder}", **WHOLE)
    message = error_of(lambda: upstream(options, default_options()))
    assert "label" in message
    assert "got 3; expected integers 0..2" in message


@pytest.mark.parametrize(("images", "said"), [
    (pixels(12).astype(np.float32), ["float32", "astype(np.uint8)"]),
    (pixels(12).astype(np.uint16), ["uint16", ">> 8"]),
    (pixels(12)[..., :2], ["mode LA", "alpha"]),
    (np.zeros((12, 8, 8, 5), np.uint8), ["mode 5 channels"]),
    (np.zeros((12, 0, 8, 3), np.uint8), ["no pixels"]),
    (np.zeros((12, 8), np.uint8), ["uint8 [12, 8]"]),
    (np.array([{}] * 12), ["cannot be read"]),
], ids=lambda v: "")
def test_bad_arrays_are_named(tmp_path, images, said):
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(12) % 2)
    message = error_of(lambda: upstream(data(upstream=f"npz:{tmp_path}/set.npz"),
                                        default_options()))
    for words in said:
        assert words in message


def test_the_hint_on_16_bits_is_for_those_alone(tmp_path):
    write_idx(tmp_path / "set", prefixes=("",), zipped=False)
    labels = (tmp_path / "set" / "labels-idx1-ubyte").read_bytes()
    (tmp_path / "set" / "images-idx3-ubyte").write_bytes(labels)
    message = error_of(lambda: open_set(f"idx:{tmp_path}/set"))
    assert "uint8 [" in message
    assert "16 bits" not in message


def test_bad_idx_files_are_named(tmp_path):
    good = idx_bytes(np.zeros((4, 8, 8), np.uint8))
    for content, said in ((good[:-1], "fewer bytes"), (good + b"x", "more bytes"),
                          (b"\0\0\x0d\x03" + good[4:], "no IDX file of bytes"),
                          (good[:7], "cut off"),
                          (b"\0\0\x08\x03" + b"\xff" * 12, "too large")):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_idx(folder, prefixes=("",), zipped=False)
        (folder / "images-idx3-ubyte").write_bytes(content)
        assert said in error_of(lambda folder=folder: open_set(f"idx:{folder}"))
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / "labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8bxxxx")
    (tmp_path / "gz" / "images-idx3-ubyte.gz").write_bytes(b"no gzip")
    assert "cannot be read" in error_of(lambda: open_set(f"idx:{tmp_path}/gz"))
    (tmp_path / "gz" / "labels-idx1-ubyte.gz").unlink()
    assert "no labels file" in error_of(lambda: open_set(f"idx:{tmp_path}/gz"))


def test_bad_parquet_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1")
    assert "cannot read x.parquet" in error_of(lambda: open_set(f"parquet:{path}"))
    path = tmp_path / "y.parquet"
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), path)
    assert "no columns image" in error_of(lambda: open_set(f"parquet:{path}"))
    path = tmp_path / "z.parquet"
    images = [encode(i) for i in pixels(6)]
    pq.write_table(pa.table({"bytes": images, "label": ["b", "a", "c"] * 2}), path)
    found = open_set(f"parquet:{path}")
    assert found.pools["all"].labels().tolist() == [1, 0, 2] * 2


def test_the_labels_of_parquet_files_are_joined_or_refused(tmp_path):
    def write(name, labels):
        pq.write_table(pa.table({"image": [encode(i) for i in pixels(4)], "label": labels}),
                       tmp_path / name)

    write("train-0.parquet", pa.array([0, 1, 0, 1], pa.int64()))
    write("train-1.parquet", pa.array([1, 1, 0, 0], pa.int32()))
    labels = open_set(f"parquet:{tmp_path}").pools["train"].labels()
    assert labels.tolist() == [0, 1, 0, 1, 1, 1, 0, 0]
    write("train-1.parquet", ["a", "b", "a", "b"])
    open_set.cache_clear()
    assert "labels differ in kind" in error_of(lambda: open_set(f"parquet:{tmp_path}"))


@pytest.mark.parametrize(("info", "said"), [
    ([], "is no folder of a prepared data set"),
    ({"fileFormat": "array_record", "name": "x"}, "tensorflow-datasets cannot open it"),
])
def test_a_damaged_folder_of_tensorflow_datasets_is_named(tmp_path, info, said):
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    assert said in error_of(lambda: open_set(f"tfds:{tmp_path}"))


# --- options --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("changes", "said"), [
    ({"eval_pp": ({"op": "resize", "size": 4}, {"op": "value_range"})}, ["eval_pp", "4 x 4 x 3"]),
    ({"image_size": 16, "eval_pp": ({"op": "value_range"},)}, ["image_size", "8"]),
    ({"corrupt": "ignore"}, ["corrupt", "refuse, skip"]),
    ({"convert": ("palete",)}, ["did you mean palette"]),
    ({"channels": 2}, ["channels", "0, 1, 3"]),
    ({"mixup": -1.0}, ["mixup", "out of range"]),
    ({"digits": {"canvas": 9}}, ["digits", "acts on upstream 'digits' only"]),
    ({"train_pp": ({"op": "random_crop", "size": 9}, {"op": "value_range"})}, ["larger than"]),
], ids=str)
def test_bad_options_are_named(tmp_path, changes, said):
    changes = {"train_pp": ({"op": "flip"}, {"op": "value_range"}), **changes}
    options = data(upstream=make_npz(tmp_path), **WHOLE, **changes)
    message = error_of(lambda: upstream(options, default_options()))
    for words in said:
        assert words in message


def test_options_that_would_do_nothing_are_refused():
    for changes in ({"mixup": 0.2}, {"image_size": 28}, {"train": "train"}):
        assert "does not act on the embedded study" in error_of(
            lambda changes=changes: upstream(data(**changes), default_options()))
    assert "digits_new_classes" in error_of(
        lambda: tasks(data(transfer={"all": "digits"}), default_options()))


def test_transfer_settings_are_checked(tmp_path):
    line = make_npz(tmp_path)
    for value, said in (({"sorce": line}, "did you mean source"), ({"train": "x"}, "source"),
                        ({"source": line, "pp": (
                            {"op": "decode", "channels": 3}, {"op": "resize", "size": 12},
                            {"op": "value_range"})}, "3 channels; expected 1")):
        options = data(transfer={"mine": value})
        assert said in error_of(
            lambda o=options: tasks(o, default_options())["mine"].examples("train"))


def test_a_task_of_another_size_is_fine_tuned_at_that_resolution(tmp_path):
    steps = ({"op": "resize", "size": 24}, {"op": "value_range"})
    table = {"source": make_npz(tmp_path), "train": "train[:75%]", "validation": "train[75%:]",
             "test": "test"}
    found = tasks(data(transfer={"large": {**table, "pp": steps}, "same": {
        **table, "pp": ({"op": "resize", "size": 12}, {"op": "value_range"})}}), default_options())
    assert found["large"].kinds == {"fine_tune"}
    assert found["large"].options == {"num_classes": 4, "image_size": 24}
    assert found["large"].examples("train").load(0, None)["image"].shape == (24, 24, 1)
    assert found["same"].kinds == {"few_shot", "fine_tune"}
    assert found["same"].options == {"num_classes": 4}


def test_raw_pixels_are_probed_of_small_images_only(tmp_path):
    line = make_npz(tmp_path)
    for size, raw in ((32, True), (128, False)):
        options = data(upstream=line, image_size=size, **WHOLE, transfer={"mine": line})
        assert (tasks(options, default_options())["mine"].baseline is not None) == raw


def test_images_that_are_no_squares_need_a_size(tmp_path):
    np.savez(tmp_path / "set.npz", images=pixels(40)[:, :6], labels=np.arange(40) % 2)
    options = data(upstream=f"npz:{tmp_path}/set.npz")
    message = error_of(lambda: upstream(options, default_options()))
    assert "image_size: is needed: the images are no squares but 6 x 8" in message


def test_images_of_many_sizes_need_a_size(tmp_path):
    write_folder(tmp_path / "set", count=10)
    (tmp_path / "set" / "ant" / "big.png").write_bytes(encode(pixels(1, size=20)[0]))
    line = {"upstream": f"folder:{tmp_path}/set", "train": "all", "validation": "all[:4]"}
    message = error_of(lambda: upstream(data(**line), default_options()))
    assert "image_size: is needed: the images differ in size" in message
    with pytest.warns(UserWarning, match="share 4 images"):
        found = upstream(data(**line, image_size=8), default_options())
    assert found.options["image_size"] == 8
    # The smallest image is smaller than the crop: known before training.
    steps = ({"op": "random_crop", "size": 16}, {"op": "value_range"})
    line |= {"validation": "all[-1:]", "train": "all[:-1]"}
    message = error_of(lambda: upstream(data(**line, eval_pp=steps), default_options()))
    assert "larger than the image" in message
