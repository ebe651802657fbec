"""Run directories, import and export on the toy: round trips, atomicity, what is refused."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
import toy

from deepnarrow.assemble import make_model
from deepnarrow.checkpoint import Checkpointer
from deepnarrow.errors import InputError
from deepnarrow.files import new_path
from deepnarrow.foreign import checked_file, export_checkpoint, find_format, import_checkpoint
from deepnarrow.rundir import load_params, read_run, shape_name

TINY = toy.toy_modality().presets["tiny"].shape


@pytest.fixture(scope="module")
def registry():
    return toy.toy_registry()


@pytest.fixture(scope="module")
def params():
    modality = toy.toy_modality()
    model = make_model(modality, toy.toy_architecture(), TINY, modality.options)
    return jax.tree.map(np.asarray, model.init(jax.random.key(7)))


@pytest.fixture
def foreign(tmp_path, params):
    path = tmp_path / "foreign.npz"
    modality = toy.toy_modality()
    write = modality.checkpoint_formats["toy_npz"].write
    assert write is not None
    write(str(path), TINY, modality.options, params)
    return path


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_import_and_export_keep_every_bit(tmp_path, registry, foreign, params):
    info = import_checkpoint("toy", "toy_npz", foreign, tmp_path / "run", registry)
    assert (info.name, info.architecture, info.shape) == ("tiny", "toy_mlp", TINY)
    assert read_run(tmp_path / "run") == info
    same(load_params(tmp_path / "run", registry), params)
    export_checkpoint(tmp_path / "run", "toy_npz", tmp_path / "out.npz", registry)
    with np.load(foreign) as before, np.load(tmp_path / "out.npz") as after:
        assert before.files == after.files
        for name in before.files:
            np.testing.assert_array_equal(before[name], after[name])


def test_the_source_is_recorded_by_content(tmp_path, registry, foreign):
    source = import_checkpoint("toy", "toy_npz", foreign, tmp_path / "a", registry).source
    (file,) = source["files"]
    assert file == {"path": "foreign.npz",
                    "sha256": hashlib.sha256(foreign.read_bytes()).hexdigest()}
    assert source["kind"] == "import"
    moved = tmp_path / "elsewhere" / "renamed.npz"
    moved.parent.mkdir()
    foreign.rename(moved)
    again = import_checkpoint("toy", "toy_npz", moved, tmp_path / "b", registry).source
    assert again["sha256"] == source["sha256"]


def test_only_params_are_read_of_a_whole_training_state(tmp_path, registry, foreign, params):
    import_checkpoint("toy", "toy_npz", foreign, tmp_path / "run", registry)
    later = jax.tree.map(lambda x: x + 1, params)
    with Checkpointer(tmp_path / "run" / "checkpoints") as checkpointer:
        checkpointer.save(5, {"step": np.int32(5), "params": later, "opt_state": (params,)})
    same(load_params(tmp_path / "run", registry), later)


def test_weights_of_another_model_are_refused(tmp_path, registry, foreign):
    import_checkpoint("toy", "toy_npz", foreign, tmp_path / "run", registry)
    run = tmp_path / "run" / "run.json"
    values = json.loads(run.read_text())
    values["shape"]["d_ff"] = 48
    run.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"3 arrays differ .* first encoder/layers/mlp/wi/bias "
                       r"\(got float32\[2, 32\]; expected float32\[2, 48\]\)"):
        load_params(tmp_path / "run", registry)


@pytest.mark.parametrize(("change", "message"), [
    ({"encoder/layers/mlp/wi/bias": None},
     r"wi/bias \(got nothing; expected float32\[2, 32\]\)"),
    ({"extra": np.zeros(2, np.float32)}, r"extra \(got float32\[2\]; expected nothing\)"),
    ({"encoder/layers/mlp/wo/kernel": np.zeros((2, 16, 32), np.float32)},
     r"wo/kernel \(got float32\[2, 16, 32\]; expected float32\[2, 32, 16\]\)"),
    ({"head/kernel": np.zeros((16, 3))}, r"head/kernel \(got float64\[16, 3\]; expected float32"),
])
def test_a_foreign_checkpoint_that_does_not_fit_leaves_nothing_behind(
    tmp_path, registry, foreign, change, message
):
    with np.load(foreign) as arrays:
        changed = {**arrays, **change}
    np.savez(foreign, **{name: array for name, array in changed.items() if array is not None})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        import_checkpoint("toy", "toy_npz", foreign, tmp_path / "run", registry)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_exists_is_never_written_over(tmp_path, registry, foreign):
    import_checkpoint("toy", "toy_npz", foreign, tmp_path / "run", registry)
    kept = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(InputError, match="run': exists already"):
        import_checkpoint("toy", "toy_npz", foreign, tmp_path / "run", registry)
    (tmp_path / "link").symlink_to("nowhere")
    for taken in (foreign, tmp_path / "link"):
        with pytest.raises(InputError, match="exists already"):
            export_checkpoint(tmp_path / "run", "toy_npz", taken, registry)
    assert (tmp_path / "run" / "run.json").read_bytes() == kept


def test_an_unknown_format_is_named_with_what_is_near(registry):
    with pytest.raises(InputError, match=r"format 'toy_npy'.*one of toy_npz.*did you mean toy_npz"):
        find_format(registry.modality("toy"), "toy_npy")


def test_an_option_that_the_checkpoint_decides_cannot_be_set(tmp_path, registry, foreign):
    with pytest.raises(InputError, match=r"num_classes: the checkpoint decides this .*got 7"):
        import_checkpoint("toy", "toy_npz", foreign, tmp_path / "run", registry,
                          {"num_classes": 7})
    info = import_checkpoint("toy", "toy_npz", foreign, tmp_path / "run", registry,
                             {"dropout_rate": 0.5})
    assert info.options["dropout_rate"] == 0.5


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "", "a\0b"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="outside of its folder"):
        checked_file(tmp_path, name)


def test_links_inside_a_checkpoint_are_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("x")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "link").symlink_to("real/file")
    for name in ("link", "folder/file"):
        with pytest.raises(InputError, match=r"is a link.*cp -rL"):
            checked_file(tmp_path, name)
    assert checked_file(tmp_path / "folder", "file").read_text() == "x"


@pytest.mark.parametrize(("content", "message"), [
    ("{", "is no JSON"), ("[]", "run.json"), ('{"format": 3}', "later version"),
    ('{"format": 1}', "modality: is missing"), ("[" * 100_000, "is no JSON"),
])
def test_a_damaged_run_file_is_bad_input(tmp_path, content, message):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_run(tmp_path)


def test_something_else_is_no_run_directory(tmp_path):
    with pytest.raises(InputError, match=r"run.json is missing"):
        read_run(tmp_path)


def test_a_run_without_weights_says_so(tmp_path, registry, foreign):
    import_checkpoint("toy", "toy_npz", foreign, tmp_path / "run", registry)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(InputError, match=r"has no weights.*nothing has been saved"):
        load_params(tmp_path / "run", registry)


def test_a_new_path_is_whole_or_not_there(tmp_path):
    def fill(path, fail):
        with new_path(path) as made:
            made.mkdir()
            (made / "part").write_text("x")
            if fail:
                raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        fill(tmp_path / "deep" / "run", fail=True)
    assert list((tmp_path / "deep").iterdir()) == []
    fill(tmp_path / "deep" / "run", fail=False)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["run"]


def test_a_place_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), new_path(tmp_path / "file" / "x"):
        pass


def test_names_of_shapes_read_back(registry):
    vocabulary = registry.vocabulary(registry.modality("toy"))
    for shape, name in ((TINY, "tiny"), (TINY.replace(num_encoder_layers=5), "tiny-nl5"),
                        (TINY.replace(share_kv=True), "tiny-skv")):
        assert shape_name(shape, {}, vocabulary) == name
