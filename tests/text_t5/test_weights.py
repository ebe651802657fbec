"""T5 weights in and out: what transformers and T5X wrote gives what they compute; bad input."""

import functools
import hashlib
import importlib.util
import json
import pathlib
import shutil
import sys
import zipfile

import jax
import numpy as np
import pytest
import tensorstore
from flax import serialization
from safetensors.numpy import load_file

from deepnarrow.assemble import build_stacks, make_model
from deepnarrow.cli import main
from deepnarrow.config import CheckpointSource, ModalityStudy, StudyConfig
from deepnarrow.errors import InputError
from deepnarrow.foreign import export_checkpoint, import_checkpoint, inspect, read_foreign, save_run
from deepnarrow.layers.transformer import TRANSFORMER
from deepnarrow.plugins import registry
from deepnarrow.protocol import FewShot, Protocol
from deepnarrow.rundir import RunInfo, load_params, read_run, run_options
from deepnarrow.shape import Shape
from deepnarrow.tensorfiles import write_safetensors
from deepnarrow.trials import open_data, plan_trials
from deepnarrow_text_t5.model import make_t5
from deepnarrow_text_t5.vocabulary import train_vocabulary

HERE = pathlib.Path(__file__).parent
SHAPE = Shape(2, 1, d_model=16, d_ff=24, d_kv=6, num_heads=3)
SIZES = {"vocab_size": 48, "input_length": 20, "target_length": 8}
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})
T5 = registry().modality("text_t5")


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    with zipfile.ZipFile(HERE / "golden" / "weights.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def hugging_face(golden, tmp_path):
    return pathlib.Path(shutil.copytree(golden / "huggingface", tmp_path / "source"))


@pytest.fixture
def t5x(golden, tmp_path):
    return pathlib.Path(shutil.copytree(golden / "t5x", tmp_path / "source"))


@functools.cache
def outputs_of(shape, settings):
    """`(params, batch) -> (logits, greedy tokens)` of a model, compiled once."""
    options = T5.options.copy_and_resolve_references()
    options.update(dict(settings))
    stacks = build_stacks(T5, TRANSFORMER, shape, options)
    t5, model = make_t5(shape, options, stacks), make_model(T5, TRANSFORMER, shape, options)
    return jit(lambda params, batch: (t5.logits(params, batch, None, train=False)[0],
                                      model.predict(params, batch)))


def check_outputs(run_dir, expected):
    """A run's logits, and its greedy tokens where they are known, are those of the other library"""
    info = read_run(run_dir)
    settings = tuple(sorted({**info.options, **SIZES}.items()))
    batch = {name: expected[name] for name in ("inputs", "targets")}
    logits, tokens = outputs_of(info.shape, settings)(load_params(run_dir, registry()), batch)
    real = batch["targets"] != 0
    assert np.abs(np.asarray(logits) - expected["logits"])[real].max() <= 1e-4
    if "decoded" in expected:
        np.testing.assert_array_equal(tokens, expected["decoded"])


# --- equality with what wrote them ---------------------------------------------------------------
@pytest.mark.parametrize(("name", "format_name", "buckets"), [
    ("huggingface", "huggingface", 8), ("huggingface_sharded", "huggingface", 8),
    ("t5x", "t5x", 32), ("t5x_scanned", "t5x", 32)])
def test_what_another_library_wrote_gives_what_it_computes(
    golden, tmp_path, name, format_name, buckets
):
    info = import_checkpoint("text_t5", format_name, golden / name, tmp_path / "run", registry())
    assert (info.shape, info.options["vocab_size"]) == (SHAPE, 48)
    assert info.options["relative_buckets"] == buckets
    with np.load(golden / f"{name.removesuffix('_sharded')}.npz") as expected:
        check_outputs(tmp_path / "run", dict(expected))


def test_golden_decoding_ends_early_in_some_rows(golden):
    with np.load(golden / "huggingface.npz") as arrays:
        ended = (arrays["decoded"] == 37).any(axis=1)
    assert ended.any()
    assert not ended.all()


def test_export_gives_back_what_transformers_wrote(golden, tmp_path):
    import_checkpoint("text_t5", "huggingface", golden / "huggingface", tmp_path / "run",
                      registry())
    export_checkpoint(tmp_path / "run", "huggingface", tmp_path / "out", registry())
    theirs = load_file(golden / "huggingface" / "model.safetensors")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)
    for file in ("config.json", "generation_config.json"):
        theirs = json.loads((golden / "huggingface" / file).read_text())
        ours = json.loads((tmp_path / "out" / file).read_text())
        shared = ours.keys() & theirs.keys()
        assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
        assert {"decoder_start_token_id", "eos_token_id", "pad_token_id"} <= shared


def test_transformers_loads_what_we_export_live(tmp_path):
    """Logits within 1e-4 and equal greedy tokens, where torch and transformers can be had."""
    pytest.importorskip("torch", reason="torch is no dependency; install it to run this test")
    transformers = pytest.importorskip("transformers", reason="transformers is no dependency")
    script = load_script()
    settings = {**SIZES, "eos_id": script.EOS_ID}
    save_random_run(tmp_path / "run", SHAPE, settings)
    export_checkpoint(tmp_path / "run", "huggingface", tmp_path / "out", registry())
    model = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path / "out", attn_implementation="eager").eval()
    check_outputs(tmp_path / "run", script.hugging_face_outputs(model))


def load_script():
    spec = importlib.util.spec_from_file_location("golden_weights", HERE / "make_golden_weights.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def save_random_run(run_dir, shape, settings):
    info = RunInfo("text_t5", "transformer", "made up", shape,
                   {**T5.options.to_dict(), **settings}, {}, {"kind": "import"})
    model = make_model(T5, TRANSFORMER, shape, run_options(info, registry()))
    params = jit(model.init)(jax.random.key(4))
    # The table is small beside the layers' outputs, or decoding would repeat its first token.
    save_run(run_dir, info, {**params, "embedding": 0.1 * params["embedding"]})


# --- Hugging Face: what is refused ---------------------------------------------------------------
def refuse(path, format_name, message):
    """Neither inspected nor imported, and nothing is left behind."""
    target = path.parent / "refused"
    with pytest.raises(InputError, match=message):
        import_checkpoint("text_t5", format_name, path, target, registry())
    assert not target.exists()
    assert not list(path.parent.glob(".*"))


def change_json(path, changes):
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.mark.parametrize(("changes", "message"), [
    ({"feed_forward_proj": "gated-gelu"}, r"gated MLPs, as T5 1.1.*got feed_forward_proj g"),
    ({"feed_forward_proj": "gelu"}, r"its activation is not supported"),
    ({"tie_word_embeddings": False}, r"a table of their own.*tie_word_embeddings False"),
    ({"scale_decoder_outputs": False}, r"a table of their own"),
    ({"model_type": "mt5"}, r"is of another model \(got model_type mt5"),
    ({"layer_norm_epsilon": 1e-5}, "another epsilon"),
    ({"decoder_start_token_id": 2}, "starts with another token than padding"),
    ({"d_model": "16"}, "d_model is no integer"), ({"num_heads": True}, "num_heads is no integer"),
    ({"num_layers": -1}, "num_layers is no integer >= 0"),
    ({"d_ff": 10**9}, "d_ff is out of range"),
    ({"d_ff": 32}, r"6 arrays differ from those of its config: "
     r"decoder.block.0.layer.2.DenseReluDense.wi.weight: \[24, 16\], not \[32, 16\]; "),
    ({"vocab_size": 64}, r"shared.weight: \[48, 16\], not \[64, 16\]"),
    ({"num_layers": 3}, r"encoder.block.2.layer.0.SelfAttention.k.weight: absent, not \[18, 16\]"),
    ({"num_layers": 1, "num_decoder_layers": 1}, r"encoder.block.1.*: \[.*\], not absent"),
    ({"num_decoder_layers": None}, r"decoder.block.1.*absent"),
])
def test_a_config_that_is_no_t5_or_does_not_fit_is_refused(hugging_face, changes, message):
    change_json(hugging_face / "config.json", changes)
    refuse(hugging_face, "huggingface", message)


def test_pickles_are_refused_even_beside_a_good_config(hugging_face):
    (hugging_face / "model.safetensors").unlink()
    (hugging_face / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    refuse(hugging_face, "huggingface", r"pickled weights.*pytorch_model.bin.*save_pretrained")


def test_a_link_is_refused(hugging_face):
    (hugging_face / "model.safetensors").rename(hugging_face.parent / "blob")
    (hugging_face / "model.safetensors").symlink_to(hugging_face.parent / "blob")
    refuse(hugging_face, "huggingface", "is a link, which is not followed")


def test_a_missing_config_is_named(hugging_face):
    (hugging_face / "config.json").unlink()
    refuse(hugging_face, "huggingface", r"config.json': is missing")
    refuse(hugging_face / "model.safetensors", "huggingface", "is no folder")


def rewrite(folder, change):
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    write_safetensors(folder / "model.safetensors", arrays)


def params_of(folder, run_dir):
    import_checkpoint("text_t5", "huggingface", folder, run_dir, registry())
    return load_params(run_dir, registry())


def test_an_untied_table_is_refused_and_a_tied_copy_is_not(hugging_face, tmp_path):
    without = params_of(hugging_face, tmp_path / "without")
    rewrite(hugging_face, lambda a: a.update({"lm_head.weight": a["shared.weight"] + 1}))
    refuse(hugging_face, "huggingface", "lm_head.weight': differ from the shared table")
    rewrite(hugging_face, lambda a: a.update({"lm_head.weight": a["shared.weight"]}))
    jax.tree.map(np.testing.assert_array_equal, params_of(hugging_face, tmp_path / "with"), without)


def test_the_bias_that_no_layer_of_old_releases_uses_is_left_out(hugging_face, tmp_path):
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    without = params_of(hugging_face, tmp_path / "without")
    rewrite(hugging_face, lambda a: a.update({name: np.ones((8, 3), np.float32)}))
    jax.tree.map(np.testing.assert_array_equal, params_of(hugging_face, tmp_path / "with"), without)


@pytest.mark.parametrize("flag", ["share_heads", "share_kv"])
def test_shared_projections_cannot_be_exported(tmp_path, flag):
    save_random_run(tmp_path / "run", SHAPE.replace(**{flag: True}), SIZES)
    with pytest.raises(InputError, match="has no shared projections"):
        export_checkpoint(tmp_path / "run", "huggingface", tmp_path / "out", registry())
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_t5x_is_only_read(golden, tmp_path):
    import_checkpoint("text_t5", "t5x", golden / "t5x", tmp_path / "run", registry())
    with pytest.raises(InputError, match=r"is only read, not written \(expected one of huggingf"):
        export_checkpoint(tmp_path / "run", "t5x", tmp_path / "out", registry())


def test_formats_are_suggested():
    with pytest.raises(InputError, match="did you mean huggingface"):
        inspect(T5, "huggingfac", "x")


# --- T5X: what is refused ------------------------------------------------------------------------
def change_tree(folder, change):
    file = folder / "checkpoint"
    tree = serialization.msgpack_restore(file.read_bytes())
    change(tree["optimizer"]["target"])
    file.write_bytes(serialization.msgpack_serialize(tree))


def zarray(folder, name):
    return folder / f"target.{name.replace('/', '.')}" / ".zarray"


QUERY = "encoder/layers_0/attention/query/kernel"


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t["decoder"].update({"logits_dense": {"kernel": np.ones((16, 48), np.float32)}}),
     "is a T5 1.1"),
    (lambda t: t["encoder"]["layers_0"]["mlp"].update(
        {"wi_0": {"kernel": np.ones((16, 24), np.float32)}}), "is a T5 1.1"),
    (lambda t: t["token_embedder"].clear(), r"missing \(expected token_embedder/embedding"),
    (lambda t: t["encoder"]["layers_1"]["mlp"].pop("wo"),
     r"encoder/layers_1/mlp/wo/kernel does not fit .*got nothing; expected \[24, 16\]"),
    (lambda t: t["encoder"]["encoder_norm"].update({"scale": np.ones(15, np.float32)}),
     r"encoder/encoder_norm/scale does not fit .*got \[15\]; expected \[16\]"),
    (lambda t: t.update({"extra": {"x": np.ones(2, np.float32)}}), "has no place for .got extra/x"),
    (lambda t: t.update({"extra": 3}), r"extra is no array \(got int"),
])
def test_a_t5x_tree_that_does_not_fit_is_refused(t5x, change, message):
    change_tree(t5x, change)
    refuse(t5x, "t5x", message)


@pytest.mark.parametrize(("where", "message"), [
    ("../outside", "outside of its folder"), ("/etc", "outside of its folder"),
    ("nowhere", r"nowhere/.zarray': is missing"),
])
def test_a_spec_leads_nowhere_else(t5x, where, message):
    def change(target):
        spec = target["encoder"]["layers_0"]["attention"]["query"]["kernel"]
        spec["kvstore"]["path"] = where

    change_tree(t5x, change)
    refuse(t5x, "t5x", message)


def test_another_store_is_not_opened(t5x):
    def change(target):
        target["encoder"]["layers_0"]["attention"]["query"]["kernel"] = {
            "driver": "json", "kvstore": {"driver": "http", "base_url": "http://localhost"}}

    change_tree(t5x, change)
    refuse(t5x, "t5x", r"in a store that is not supported \(got json")


@pytest.mark.parametrize(("changes", "message"), [
    ({"shape": [2**40, 18], "chunks": [2**40, 18]}, "larger than its files can hold"),
    ({"shape": [2**40, 18]}, "more chunks than there are"), ({"chunks": [0, 18]}, "do not fit"),
    ({"shape": [16, -1]}, "no list of sizes"), ({"dtype": "|O"}, "no array of floats"),
    ({"shape": [15, 18]}, r"does not fit the other arrays \(got \[15, 18\]"),
    ({"chunks": [8, 18]}, "is missing|more chunks"),
])
def test_a_zarr_header_that_lies_is_refused(t5x, changes, message):
    change_json(zarray(t5x, QUERY), changes)
    refuse(t5x, "t5x", message)


@pytest.mark.parametrize("cut", [0, 10, 500])
def test_a_chunk_cut_short_is_refused(t5x, cut):
    chunk = zarray(t5x, QUERY).with_name("0.0")
    chunk.write_bytes(chunk.read_bytes()[:cut])
    refuse(t5x, "t5x", "cannot be read|larger than its files can hold")


def test_a_missing_or_linked_chunk_is_refused(t5x):
    chunk = zarray(t5x, QUERY).with_name("0.0")
    chunk.rename(t5x / "elsewhere")
    refuse(t5x, "t5x", "is missing")
    chunk.symlink_to(t5x / "elsewhere")
    refuse(t5x, "t5x", "is a link")


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95cos\nsystem\n", b"\xc1", b"\x93\x01",
                                     b"\x91" * 5000, b"\x81\xa9optimizer\x01"])
def test_a_state_file_that_is_something_else_is_refused(t5x, content):
    (t5x / "checkpoint").write_bytes(content)
    refuse(t5x, "t5x", "is no msgpack of arrays|is no tree|has no 'target'")


def test_a_model_folder_says_which_step_to_name(t5x):
    for step in ("checkpoint_9", "checkpoint_100"):
        (t5x.parent / "model" / step).mkdir(parents=True)
    refuse(t5x.parent / "model", "t5x", "name one of its steps: .*checkpoint_100")


def test_layers_with_biases_of_their_own_are_refused(golden, tmp_path):
    folder = pathlib.Path(shutil.copytree(golden / "t5x_scanned", tmp_path / "source"))
    bias = np.random.default_rng(0).normal(size=(3, 2, 32)).astype(np.float32)
    change_tree(folder, lambda t: t["encoder"]["encoder"]["relpos_bias"].update(
        {"rel_embedding": bias}))
    refuse(folder, "t5x", "every encoder layer has a relative bias of its own")


def test_layers_may_lie_on_the_first_axis(golden, tmp_path):
    folder = pathlib.Path(shutil.copytree(golden / "t5x_scanned", tmp_path / "source"))
    found = inspect(T5, "t5x", folder)
    expected = read_foreign(found, T5, registry())

    def layers_first(node):
        for key, value in node.items():
            if isinstance(value, dict) and "driver" not in value:
                layers_first(value)
                continue
            if isinstance(value, dict):
                path = f"{folder}/{value['kvstore']['path']}"
                spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": path}}
                value = tensorstore.open(spec).result().read().result()
            node[key] = np.moveaxis(value, 1, 0).copy()

    def change(target):
        for role in ("encoder", "decoder"):
            layers_first(target[role][role])

    change_tree(folder, change)
    read = read_foreign(inspect(T5, "t5x", folder), T5, registry())
    jax.tree.map(np.testing.assert_array_equal, read, expected)


# --- the vocabulary beside the weights ------------------------------------------------------------
PIECES = 512
STAGES = Protocol(few_shot=FewShot(("words",), shots=(1,), seeds=1))


@functools.cache
def pieces(words):
    """A SentencePiece model; other words, another one of as many pieces."""
    return train_vocabulary([f"{word} {i * 7919}" for word in words.split() for i in range(500)],
                            PIECES)


@pytest.fixture
def with_pieces(tmp_path, monkeypatch):
    """A Hugging Face folder of random weights, as wide as its `spiece.model` needs; a task."""
    monkeypatch.setenv("DEEPNARROW_CACHE", str(tmp_path / "cache"))
    settings = {"vocab_size": 640, "relative_buckets": 8}
    save_random_run(tmp_path / "made", SHAPE, settings)
    export_checkpoint(tmp_path / "made", "huggingface", tmp_path / "hf", registry())
    (tmp_path / "hf" / "spiece.model").write_bytes(pieces("red green blue"))
    (tmp_path / "words.jsonl").write_text("".join(
        json.dumps({"text": f"red {i}", "label": i % 2}) + "\n" for i in range(200)))
    return tmp_path / "hf"


def checkpoint_study(*sources, **data):
    folder = pathlib.Path(sources[0].path).parent
    custom = {"words": f"jsonl:{folder}/words.jsonl#text->label"}
    part = ModalityStudy("text_t5", (), STAGES, checkpoints=sources,
                         data={"custom_tasks": custom, "task_target_length": 4, **data},
                         options={})
    return StudyConfig("pieces", (0,), {"text_t5": part})


def plan(config):
    data = open_data(config.modalities["text_t5"], registry())
    trials, notes = plan_trials(config, registry(), {"text_t5": data})
    return trials, notes, data.tasks["words"].examples("train").content_hash


def imported(with_pieces):
    run_dir = with_pieces.parent / "run"
    import_checkpoint("text_t5", "huggingface", with_pieces, run_dir, registry())
    return run_dir


@pytest.mark.parametrize("kind", ["huggingface", "run"])
def test_a_study_of_a_checkpoint_tokenises_with_its_own_vocabulary(with_pieces, kind):
    path = with_pieces if kind == "huggingface" else imported(with_pieces)
    source = CheckpointSource("a", kind, str(path))
    trials, notes, content = plan(checkpoint_study(source))
    sha256 = hashlib.sha256(pieces("red green blue")).hexdigest()
    assert trials[0].config()["checkpoint"]["data_files"] == {"vocabulary": sha256}
    assert trials[0].options["vocab_size"] == 640
    assert notes == []
    copy = with_pieces.parent / "copy.model"
    copy.write_bytes(pieces("red green blue"))
    named = plan(checkpoint_study(source, vocabulary=str(copy)))
    assert (named[0][0].key, named[2]) == (trials[0].key, content)  # content decides, not the path
    (with_pieces / "spiece.model").unlink()
    other = plan(checkpoint_study(CheckpointSource("a", "huggingface", str(with_pieces)),
                                  vocabulary=str(copy)))
    assert other[2] == content
    assert other[1] == ["text_t5: checkpoint a came without a file for data.vocabulary, so nothing "
                        "checks that it was trained with the study's"]


@pytest.mark.parametrize("kind", ["huggingface", "run"])
def test_another_vocabulary_than_the_checkpoints_is_refused(with_pieces, kind):
    path = with_pieces if kind == "huggingface" else imported(with_pieces)
    other = with_pieces.parent / "other.model"
    other.write_bytes(pieces("yellow green blue"))
    source = CheckpointSource("a", kind, str(path))
    message = (r"^modalities.text_t5.data.vocabulary: is another file than checkpoint 'a' came "
               r"with \(got .*other.model; expected .*spiece.model\). Hint: leave the option out")
    with pytest.raises(InputError, match=message) as error:
        plan(checkpoint_study(source, vocabulary=str(other)))
    assert "\n" not in str(error.value)
    assert not (with_pieces.parent / "cache").exists()  # before anything was tokenised
    with pytest.raises(InputError, match=r"vocabulary 'none.model': cannot be read"):
        plan(checkpoint_study(source, vocabulary="none.model"))


def test_a_corpus_prepared_with_another_vocabulary_is_refused(with_pieces):
    folder = with_pieces.parent
    (folder / "other.model").write_bytes(pieces("yellow green blue"))
    (folder / "text.txt").write_text("\n".join(f"red green {i}" for i in range(3000)))
    data = T5.data_options.copy_and_resolve_references()
    data.update({"source": f"text:{folder}/text.txt#line",
                 "vocabulary": str(folder / "other.model")})
    assert T5.prepare is not None
    T5.prepare(data, folder / "corpus", lambda *_: None)
    config = checkpoint_study(CheckpointSource("a", "huggingface", str(with_pieces)),
                              source=f"prepared:{folder}/corpus")
    with pytest.raises(InputError, match=r"was made with another vocabulary \(got .*spiece.model"):
        plan(config)


def test_checkpoints_of_different_vocabularies_are_studies_of_their_own(with_pieces):
    second = pathlib.Path(shutil.copytree(with_pieces, with_pieces.parent / "second"))
    sources = [CheckpointSource(name, "huggingface", str(path))
               for name, path in (("a", with_pieces), ("b", second))]
    _, notes, _ = plan(checkpoint_study(*sources))
    assert notes == ["text_t5: b is a; it is run once"]
    (second / "spiece.model").write_bytes(pieces("yellow green blue"))
    with pytest.raises(InputError, match=r"checkpoints: came with different files for data.vocabul"
                       r"ary .*make 'a' and 'b' studies"):
        plan(checkpoint_study(*sources))


def test_import_and_export_take_the_vocabulary_along(with_pieces):
    run_dir = imported(with_pieces)
    model = pieces("red green blue")
    assert (run_dir / "spiece.model").read_bytes() == model
    assert read_run(run_dir).data_files == {"vocabulary": {
        "path": "spiece.model", "sha256": hashlib.sha256(model).hexdigest()}}
    export_checkpoint(run_dir, "huggingface", run_dir.parent / "out", registry())
    assert (run_dir.parent / "out" / "spiece.model").read_bytes() == model
    again = inspect(T5, "huggingface", run_dir.parent / "out")
    assert again.content_hash == inspect(T5, "huggingface", with_pieces).content_hash
    (run_dir / "spiece.model").write_bytes(pieces("yellow green blue"))
    with pytest.raises(InputError, match=r"spiece.model': is not the one that was imported"):
        plan(checkpoint_study(CheckpointSource("a", "run", str(run_dir))))


def test_a_linked_vocabulary_is_refused_and_none_is_said(with_pieces, hugging_face, capsys):
    assert main(["import", "text_t5", "huggingface", str(hugging_face),
                 str(with_pieces.parent / "bare")]) == 0
    assert "came without" in capsys.readouterr().out
    assert read_run(with_pieces.parent / "bare").data_files == {"vocabulary": None}
    file = with_pieces / "spiece.model"
    file.rename(with_pieces.parent / "elsewhere")
    file.symlink_to(with_pieces.parent / "elsewhere")
    with pytest.raises(InputError, match="is a link, which is not followed"):
        import_checkpoint("text_t5", "huggingface", with_pieces, with_pieces.parent / "x",
                          registry())
