"""Encoded images: class folders, tensorflow-datasets' ArrayRecord, Parquet. Imports no JAX."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepnarrow.errors import InputError, shorten
from deepnarrow_vision_vit.imageindex import Index, build_index, stamp
from deepnarrow_vision_vit.readers import (
    IMAGE_SUFFIXES,
    MAX_MEMORY_BYTES,
    SPLIT_NAMES,
    ImageSet,
    Pool,
    check_labels,
    count_classes,
)
from deepnarrow_vision_vit.splits import UNDIVIDED

if TYPE_CHECKING:
    import pyarrow as pa

# --- class folders --------------------------------------------------------------------------------
def open_folder(root: Path, where: str) -> ImageSet:
    """Opens `CLASS/*.jpg`, or `SPLIT/CLASS/*.jpg` where a folder is called train, val or test.

    Classes are numbered by their names in sorted order.

    Raises:
      InputError: no classes, a class without images, or files of other kinds among them.
    """
    folders = _subfolders(root, where)
    splits = {SPLIT_NAMES[f.name]: f for f in folders if f.name in SPLIT_NAMES}
    if splits and len(splits) < len(folders):
        raise InputError(where, "holds splits and other folders",
                         got=", ".join(f.name for f in folders if f.name not in SPLIT_NAMES),
                         expected="either splits or classes")
    by_split = {split: _subfolders(f, where) for split, f in splits.items()} or {UNDIVIDED: folders}
    classes = sorted({f.name for folders in by_split.values() for f in folders})
    if len(classes) < 2:
        raise InputError(where, "needs a folder for each of at least 2 classes",
                         got=", ".join(classes) or "none")
    pools = {split: _folder_pool(root, f"{where} {split}", folders, classes)
             for split, folders in by_split.items()}
    return ImageSet(where, pools, len(classes))


def _subfolders(folder: Path, where: str) -> list[Path]:
    if not folder.is_dir():
        raise InputError(where, "is no folder", got=folder)
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _folder_pool(root: Path, where: str, folders: list[Path], classes: list[str]) -> Pool:
    files: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        inside = sorted(f for f in folder.iterdir() if not f.name.startswith("."))
        images = [f for f in inside if f.suffix.lower() in IMAGE_SUFFIXES]
        others = [f for f in inside if f.suffix.lower() not in IMAGE_SUFFIXES]
        if others:
            raise InputError(where, f"{len(others)} files of a class are no images",
                             got=others[0].relative_to(root),
                             expected=f"only {' '.join(IMAGE_SUFFIXES)}", hint="move them away")
        if not images:
            raise InputError(where, "a class has no images", got=f"{folder.name}/ is empty",
                             hint="remove the folder or fill it")
        files += images
        labels += [classes.index(folder.name)] * len(images)
    array = np.array(labels, np.int64)
    names = [str(f.relative_to(root)) for f in files]

    def read(i: int) -> bytes:
        try:
            return files[i].read_bytes()
        except OSError as error:
            raise _unreadable(where, names[i], error) from error

    def mark(i: int) -> str:
        try:
            return stamp(files[i])
        except OSError as error:  # a link to nowhere, or a file that has gone since
            raise _unreadable(where, names[i], error) from error

    @functools.cache
    def index() -> Index:
        return build_index(f"folder {root.resolve()}", names, [mark(i) for i in range(len(files))],
                           lambda i: (read(i), -1))

    return Pool(where, labels=lambda: array, read=read, describe=lambda i: names[i], index=index,
                sorted_by_class=True)


def _unreadable(where: str, name: str, error: OSError) -> InputError:
    return InputError(where, f"cannot read {shorten(name)}: {error.strerror}",
                      hint="mend or remove it")


# --- tensorflow-datasets --------------------------------------------------------------------------
def open_tfds(folder: Path, where: str) -> ImageSet:
    """Opens what tensorflow-datasets has prepared as ArrayRecord, without TensorFlow.

    Raises:
      InputError: the folder is none of tensorflow-datasets, was prepared as TFRecord (which has no
        random access), or has no features `image` and `label`.
    """
    info = _tfds_info(folder, where)
    if info.get("fileFormat") != "array_record":
        name = info.get("name", "NAME")
        raise InputError(
            where, "was prepared in a format without random access",
            got=info.get("fileFormat", "tfrecord"), expected="array_record",
            hint=f"prepare it again: tfds build {name} --file_format=array_record (needs "
                 "TensorFlow), or convert it: tfds convert_format --dataset_dir ... "
                 "--out_file_format array_record")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # a damaged folder makes it raise nearly anything
        raise InputError(where, "tensorflow-datasets cannot open it", got=error,
                         hint="prepare it again") from error
    stored: Any = builder.info.features
    features: dict[str, Any] = dict(stored.items())
    num_classes = getattr(features.get("label"), "num_classes", None)
    if "image" not in features or num_classes is None:
        raise InputError(where, "has no features image and label (a ClassLabel)",
                         got=f"features {', '.join(features)}")
    names = list(builder.info.splits)
    return ImageSet(where, {name: _tfds_pool(builder, folder, name, where, num_classes)
                            for name in names}, num_classes)


def _tfds_info(folder: Path, where: str) -> dict[str, Any]:
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
    except (OSError, ValueError):
        info = None
    if not isinstance(info, dict):
        raise InputError(where, "is no folder of a prepared data set",
                         expected="dataset_info.json inside, e.g. .../cifar10/3.0.2",
                         hint="give the folder of the version, not the one above")
    return info


def _tfds_pool(builder: Any, folder: Path, split: str, where: str, num_classes: int) -> Pool:
    import tensorflow_datasets as tfds

    where = f"{where} {split}"

    @functools.cache
    def records() -> Any:
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def record(i: int) -> tuple[bytes, int]:
        example = records()[i]
        return bytes(example["image"]), int(example["label"])

    @functools.cache
    def index() -> Index:
        count = builder.info.splits[split].num_examples
        files = sorted(folder.glob(f"*-{split}.*"))
        marks = " ".join(f"{f.name} {stamp(f)}" for f in files)
        mark = hashlib.sha256(marks.encode()).hexdigest()
        return build_index(f"tfds {folder.resolve()} {split}", [str(i) for i in range(count)],
                           [mark] * count, record)

    @functools.cache
    def labels() -> np.ndarray:
        return check_labels(where, index().labels, num_classes)

    return Pool(where, labels=labels, read=lambda i: record(i)[0],
                describe=lambda i: f"{split} record {i}", index=index)


# --- Parquet --------------------------------------------------------------------------------------
def open_parquet(path: Path, where: str) -> ImageSet:
    """Opens one file (undivided), or a folder of `SPLIT.parquet` and `SPLIT-*.parquet` files.

    Columns: `image`, bytes or the structure {bytes, path} that the Hugging Face Hub has; or
    `bytes`. `label`: integers from 0, or strings, numbered in sorted order. Read into memory.
    """
    by_split: dict[str, list[Path]] = {}
    if path.is_dir():
        for file in sorted(path.glob("*.parquet")):
            name = file.stem.split("-")[0]
            by_split.setdefault(SPLIT_NAMES.get(name, name), []).append(file)
    else:
        by_split = {UNDIVIDED: [path]}
    if not by_split:
        raise InputError(where, "holds no .parquet files", got=path)
    tables = {split: _read_parquet(files, where) for split, files in by_split.items()}
    labels = _parquet_labels({split: t.column("label") for split, t in tables.items()}, where)
    pools = {split: _parquet_pool(f"{where} {split}", t.column("image"), labels[split],
                                  by_split[split])
             for split, t in tables.items()}
    return ImageSet(where, pools, count_classes(where, labels))


def _read_parquet(files: list[Path], where: str) -> pa.Table:
    """The columns `image` (binary) and `label` of all files."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    size, tables = 0, []
    for path in files:
        try:
            file = pq.ParquetFile(path)
            size += sum(file.metadata.row_group(g).total_byte_size
                        for g in range(file.metadata.num_row_groups))
            if size > MAX_MEMORY_BYTES:
                raise InputError(where, "is too large to be held in memory", got=f"{size} bytes",
                                 expected=f"at most {MAX_MEMORY_BYTES}",
                                 hint="prepare it as ArrayRecord, or as a folder")
            names = file.schema_arrow.names
            image = "image" if "image" in names else "bytes"
            if image not in names or "label" not in names:
                raise InputError(where, "has no columns image (or bytes) and label",
                                 got=f"{path.name}: {', '.join(names)}")
            table = file.read(columns=[image, "label"])
        except (OSError, pa.ArrowException) as error:
            raise InputError(where, f"cannot read {path.name}: {error}") from error
        column = table.column(image)
        if pa.types.is_struct(column.type):
            if column.type.get_field_index("bytes") < 0:
                raise InputError(where, "the column image has no field bytes", got=column.type)
            column = pc.call_function("struct_field", [column], pc.StructFieldOptions("bytes"))
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
            raise InputError(where, "the column of images holds no bytes", got=column.type)
        if column.null_count or table.column("label").null_count:
            raise InputError(where, "has rows without image or label", got=path.name)
        tables.append(pa.table({"image": column.cast(pa.large_binary()),
                                "label": table.column("label")}))
    try:
        return pa.concat_tables(tables, promote_options="permissive")  # int32 with int64: int64
    except pa.ArrowException as error:
        raise InputError(where, "the files' columns of labels differ in kind", got=error) from error


def _parquet_labels(columns: Mapping[str, pa.ChunkedArray], where: str) -> dict[str, np.ndarray]:
    arrays = {split: column.to_numpy() for split, column in columns.items()}
    if all(array.dtype.kind == "O" for array in arrays.values()):
        names = sorted({name for array in arrays.values() for name in array})
        numbers = {name: i for i, name in enumerate(names)}
        return {split: np.array([numbers[name] for name in array], np.int64)
                for split, array in arrays.items()}
    return {split: check_labels(f"{where} {split}", array) for split, array in arrays.items()}


def _parquet_pool(
    where: str, images: pa.ChunkedArray, labels: np.ndarray, files: list[Path]
) -> Pool:
    images = images.combine_chunks()

    def read(i: int) -> bytes:
        return images[i].as_py()

    @functools.cache
    def index() -> Index:
        marks = " ".join(f"{f.name} {stamp(f)}" for f in files)
        mark = hashlib.sha256(marks.encode()).hexdigest()
        return build_index(f"parquet {files[0].resolve()}", [str(i) for i in range(len(images))],
                           [mark] * len(images), lambda i: (read(i), -1))

    return Pool(where, labels=lambda: labels, read=read, describe=lambda i: f"row {i}", index=index,
                sorted_by_class=bool((np.diff(labels) >= 0).all()))
