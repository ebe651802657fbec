"""A tiny C4 as tensorflow-datasets prepares it (c4/en 3.0.1, ArrayRecord), made without TensorFlow.

The features are those of the builder (`tensorflow_datasets/text/c4.py`), the layout that of a real
prepared folder: `features.json`, `dataset_info.json`, `c4-train.array_record-00000-of-00002`, ...
"""

import json
import pathlib

COLUMNS = ("content-length", "content-type", "text", "timestamp", "url")


def c4_rows(split, texts):
    """Rows of the real schema."""
    return [{"content-length": str(len(text)), "content-type": "text/plain", "text": text,
             "timestamp": "2019-04-25T12:57:54Z", "url": f"https://example.com/{split}/{i}"}
            for i, text in enumerate(texts)]


def write_tfds(folder: pathlib.Path, splits, file_format="array_record"):
    """Writes split -> shards -> texts."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_generated_pb2 as example_pb2
    from tensorflow_datasets.proto import tf_feature_generated_pb2 as feature_pb2

    def serialised(row):
        features = {name: feature_pb2.Feature(bytes_list=feature_pb2.BytesList(
            value=[value.encode() if isinstance(value, str) else value]))
            for name, value in row.items()}
        return example_pb2.Example(
            features=feature_pb2.Features(feature=features)).SerializeToString()

    folder.mkdir(parents=True)
    tfds.features.FeaturesDict({name: tfds.features.Text() for name in COLUMNS}).save_config(
        str(folder))
    for split, shards in splits.items():
        for number, texts in enumerate(shards):
            path = folder / f"c4-{split}.{file_format}-{number:05d}-of-{len(shards):05d}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for row in c4_rows(split, texts):
                writer.write(serialised(row))
            writer.close()
    info = {
        "name": "c4", "configName": "en", "version": "3.0.1", "fileFormat": file_format,
        "moduleName": "tensorflow_datasets.text.c4", "splits": [
            {"name": split, "shardLengths": [str(len(texts)) for texts in shards],
             "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
            for split, shards in splits.items()]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder
