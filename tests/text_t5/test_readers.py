"""Text sources: every kind reads its documents from any of them on, and bad data has an error."""

import gzip
import importlib.util
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepnarrow.errors import InputError
from deepnarrow_text_t5.readers import open_parts

TEXTS = ["One.", "Zwei Wörter,\tzwei.", "three 三", "", "  five  ", "six"]
_SPEC = importlib.util.spec_from_file_location(
    "c4_fixture", pathlib.Path(__file__).with_name("c4_fixture.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
c4_fixture = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(c4_fixture)


def read_all(source):
    return [list(part.read(0)) for part in open_parts(source)]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(folder, kind):
    """Writes TEXTS as `kind`; returns the source and what is to be read."""
    folder = folder / "data"
    folder.mkdir(exist_ok=True)
    if kind == "tfds":
        c4_fixture.write_tfds(folder / "c4", {"train": [TEXTS[:2], TEXTS[2:]]})
        return f"tfds:{folder}/c4", TEXTS
    if kind == "jsonl":
        (folder / "a.jsonl").write_bytes(jsonl({"id": 3, "gloss": text} for text in TEXTS))
        return f"jsonl:{folder}/a.jsonl#gloss", TEXTS
    if kind == "c4_json":
        data = jsonl({"text": text, "url": "u", "timestamp": "t"} for text in TEXTS)
        (folder / "some.json.gz").write_bytes(gzip.compress(data))
        return f"c4_json:{folder}/*.json.gz", TEXTS
    if kind == "tsv":
        rows = [text.replace("\t", " ") for text in TEXTS]
        (folder / "a.tsv").write_text("n\tquestion\r\n" + "".join(f"1\t{row}\r\n" for row in rows))
        return f"tsv:{folder}/a.tsv#question", rows
    if kind == "parquet":
        pq.write_table(pa.table({"n": range(6), "t": TEXTS}), folder / "a.parquet",
                       row_group_size=2)
        return f"parquet:{folder}/a.parquet#t", TEXTS
    if kind == "line":
        (folder / "a.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join(TEXTS).encode())
        return f"text:{folder}#line", TEXTS
    if kind == "paragraph":
        (folder / "a.txt.gz").write_bytes(gzip.compress(b"\n\na\nb\n\n \nc\n"))
        return f"text:{folder}#paragraph", ["a\nb", "c"]
    (folder / "a.txt").write_text("a\n\nb\n")
    return f"text:{folder}", ["a\n\nb"]


@pytest.mark.parametrize("kind", [
    "tfds", "jsonl", "c4_json", "tsv", "parquet", "line", "paragraph", "file"])
def test_every_kind_reads_from_any_document_on(tmp_path, kind):
    source, expected = write(tmp_path, kind)
    (part,) = open_parts(source)
    assert part.split is None
    for start in range(len(expected) + 1):
        read = list(part.read(start))
        assert [text for text, _ in read] == expected[start:]
        shares = [share for _, share in read]
        assert shares == sorted(shares)
        assert all(0 < share <= 1 for share in shares)


def test_sources_are_joined_in_their_order_and_folders_are_sorted(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "d.md"):
        path = tmp_path / "x" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "g.jsonl").write_bytes(jsonl([{"text": "g"}]))
    parts = open_parts(f"jsonl:{tmp_path}/g.jsonl + text:{tmp_path}/x")
    assert [text for part in parts for text, _ in part.read(0)] == ["g", "a.txt", "b.txt",
                                                                   "sub/c.txt"]


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("one")
    c4_fixture.write_tfds(tmp_path / "c4", {"train": [["t0"]]})
    assert [text for part in read_all("text:~/*.txt + tfds:~/c4") for text, _ in part] == [
        "one", "t0"]


def test_splits_of_its_own(tmp_path):
    """C4's by file name or data set, others' by `{split}`; else the hash decides."""
    for split in ("train", "validation"):
        for shard in range(2):
            (tmp_path / f"c4-{split}.{shard:05d}-of-00002.json.gz").write_bytes(
                gzip.compress(jsonl([{"text": f"{split} {shard}"}])))
    c4_fixture.write_tfds(tmp_path / "c4", {"train": [["t0"], ["t1"]], "validation": [["v"]]})
    for source in (f"c4_json:{tmp_path}/*.json.gz", f"tfds:{tmp_path}/c4",
                   f"c4_json:{tmp_path}/c4-{{split}}.*.json.gz"):
        parts = open_parts(source)
        assert {part.split for part in parts} == {"train", "validation"}
        for part in parts:
            assert all(text.startswith(part.split[0]) for text, _ in part.read(0))
    assert {p.split for p in open_parts(f"jsonl:{tmp_path}/*.json.gz")} == {None}


BAD_LINES = [
    (b'{"text": "a"}\nx\n', "jsonl", "line 2 is not valid JSON"),
    (b'["text"]\n', "jsonl", "line 1 is no JSON object"),
    (b'{"text": "a"}\n{"txet": "a"}\n', "jsonl",
     "line 2 has no column 'text' .*one of txet.*did you mean #txet"),
    (b'{"text": 3}\n', "jsonl", "line 1: column 'text' is no text .*got int"),
    (b'{"text": "a"}\n{"text": "\xff"}\n', "jsonl",
     "line 2 is not valid UTF-8 .*byte 0xff at byte 11 of the line"),
    (b"a\tb\n1\t2\n", "tsv", "has no column 'text' .*one of a, b"),
    (b"n\ttext\n1\t2\t3\n", "tsv", "line 2 has a wrong number of columns .*got 3; expected 2"),
    (b"", "tsv", "has no names of columns .*text among them"),
    (b"text\ttext\n1\t2\n", "tsv", "has the column 'text' more than once"),
    (b"PAR1 no", "parquet", "is no readable Parquet file"),
    (b"a\0b\n", "text", "line 1 has a zero byte: this is no text file"),
    (b"ok\nna\xefve\n", "text", "line 2 is not valid UTF-8 .*byte 0xef at byte 3"),
]


@pytest.mark.parametrize(("content", "kind", "message"), BAD_LINES)
def test_bad_content_names_file_and_line(tmp_path, content, kind, message):
    path = tmp_path / f"bad.{'txt' if kind == 'text' else kind}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"file '.*bad.*'.*{message}"):
        read_all(f"{kind}:{path}")


def test_a_parquet_column_of_numbers_is_refused(tmp_path):
    pq.write_table(pa.table({"text": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"column 'text' is no text .*got int64"):
        open_parts(f"parquet:{tmp_path}/a.parquet")


def test_parquet_columns_of_text_are_read_however_they_are_encoded(tmp_path):
    texts = pa.array([*TEXTS, None, "six"])
    for encoded in (texts.dictionary_encode(), texts.cast(pa.large_string())):
        pq.write_table(pa.table({"text": encoded}), tmp_path / "a.parquet", row_group_size=3)
        (part,) = open_parts(f"parquet:{tmp_path}/a.parquet")
        assert [text for text, _ in part.read(2)] == [*TEXTS[2:], "", "six"]


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"no gzip at all",
                                    lambda b: b[:20] + bytes([b[20] ^ 255]) + b[21:]])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    whole = gzip.compress(b"".join(b"line %d\n" % (i * 7919) for i in range(1000)))
    (tmp_path / "a.txt.gz").write_bytes(damage(whole))
    with pytest.raises(InputError, match=r"a\.txt\.gz'.* is no whole gzip file"):
        read_all(f"text:{tmp_path}/a.txt.gz#line")


def test_a_document_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("deepnarrow_text_t5.textfiles.MAX_DOCUMENT_BYTES", 1000)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"x" * 10_000))
    with pytest.raises(InputError, match=r"line 1 is too long .*at most 1000 bytes"):
        open_parts(f"text:{tmp_path}/bomb.txt.gz#line")
    (tmp_path / "long.txt").write_text("line\n" * 1000)
    with pytest.raises(InputError, match=r"too long for one document .*#paragraph"):
        open_parts(f"text:{tmp_path}/long.txt")


@pytest.mark.parametrize(("source", "message"), [
    ("web", "source is unknown .*tfds, c4_json.*prepared"),
    ("jsnl:/a", "did you mean jsonl"),
    ("text:", "has no path .*e.g. text:"),
    ("text:{tmp}/books#sentence", "unknown .*one of file, paragraph, line"),
    ("c4_json:{tmp}/a#body", "'#' is unknown .*one of text"),
    ("text:{tmp}/boks", "no such file or folder .*did you mean .*books"),
    ("text:/dev/null", "is neither a file nor a folder"),
    ("jsonl:{tmp}/*.jsonl", "no file matches"),
    ("jsonl:{tmp}/books", "the folder has no such files .*jsonl.gz"),
    ("tfds:{tmp}/books", "no prepared tensorflow-datasets folder"),
    ("tfds:{tmp}/c4", "did you mean .*3.0.1"),
    ("tfds:{tmp}/c4/3.0.1#body", "has no column 'body' .*timestamp"),
    ("tfds:{tmp}/old", "cannot be read at random .*got tfrecord; expected array_record.*tfds"),
    ("tfds:{tmp}/test", "has no split 'train' .*got test"),
    ("tfds:{tmp}/gone", "split 'train' has no files"),
])
def test_what_cannot_be_opened_says_why(tmp_path, source, message):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("a")
    c4_fixture.write_tfds(tmp_path / "c4" / "3.0.1", {"train": [["a"]]})
    for name, form, split in (("old", "tfrecord", "train"), ("test", "array_record", "test"),
                              ("gone", "array_record", "train")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_info.json").write_text(json.dumps(
            {"name": "c4", "fileFormat": form, "splits": [{"name": split}]}))
    with pytest.raises(InputError, match=message):
        open_parts(source.format(tmp=tmp_path))


def test_a_lost_shard_of_a_data_set_is_an_error(tmp_path):
    folder = c4_fixture.write_tfds(tmp_path / "c4", {"train": [["a"], ["b"]]})
    (folder / "c4-train.array_record-00001-of-00002").unlink()
    with pytest.raises(InputError, match=r"split 'train' cannot be read .*copy complete"):
        read_all(f"tfds:{folder}")


def test_invalid_utf8_in_a_data_set_names_the_record(tmp_path):
    folder = c4_fixture.write_tfds(tmp_path / "c4", {"train": [["a", b"\xff"]]})
    (part,) = open_parts(f"tfds:{folder}")
    with pytest.raises(InputError, match="record 1 is not valid UTF-8"):
        list(part.read(0))
