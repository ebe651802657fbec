"""Checkpoints of big_vision, transformers and timm: the same outputs, exact round trips.

The golden files are those libraries' own (`make_golden.py`, `make_weights_golden.py`). Where a
library can be imported, it also loads what we write: those tests are skipped elsewhere.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deepnarrow.assemble import make_model
from deepnarrow.cli import main
from deepnarrow.config import resolve_options
from deepnarrow.errors import NotApplicable
from deepnarrow.layers.transformer import TRANSFORMER
from deepnarrow.shape import Shape
from deepnarrow_vision_vit.layout import flatten
from deepnarrow_vision_vit.plugin import deepnarrow_register_modalities
from deepnarrow_vision_vit.resample import resample_position

HERE = Path(__file__).parent
GOLDEN = HERE / "golden_weights"
VIT = deepnarrow_register_modalities()[0]
FORMATS = VIT.checkpoint_formats
TOLERANCE = 1e-4
FOLDERS = {"hf_classifier": "huggingface", "hf_pooler": "huggingface", "timm_tok": "timm",
           "timm_gap": "timm", "timm_map": "timm"}


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


BIG_VISION, TORCH = load_script("make_golden"), load_script("make_weights_golden")
SHAPE = Shape(BIG_VISION.DEPTH, 0, d_model=BIG_VISION.WIDTH, d_ff=BIG_VISION.MLP_DIM,
              d_kv=BIG_VISION.WIDTH // BIG_VISION.HEADS, num_heads=BIG_VISION.HEADS)


@pytest.fixture(scope="module")
def golden():
    with np.load(HERE / "golden.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def outputs():
    with np.load(GOLDEN / "outputs.npz") as archive:
        return dict(archive)


def read(format_name, path, **changed):
    """Header and params of a checkpoint; `changed` are options asked for instead of its own."""
    header = FORMATS[format_name].inspect(str(path))
    header = dataclasses.replace(header, options={**header.options, **changed})
    return header, FORMATS[format_name].read(str(path), header)


def model_of(header, **options):
    options = resolve_options(VIT.options, {**header.options, **options}, "test")
    return make_model(VIT, TRANSFORMER, header.shape, options), options


def apply(header, params, image, **options):
    """Logits, or features where the model has no head."""
    model, options = model_of(header, **options)
    function = model.predict if options.num_classes else model.features
    return np.asarray(jax.jit(function)(params, {"image": jnp.asarray(image)}))


def assert_equal(ours, theirs):
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path in ours:
        assert np.array_equal(ours[path], theirs[path]), path


def big_vision_arrays(golden, pool, position):
    """Flat arrays of one case of big_vision's own model."""
    weights = {k.removeprefix("params/"): v for k, v in golden.items() if k.startswith("params/")}
    return flatten(BIG_VISION.case_params(weights, pool, position))


def draw(shape, **options):
    """A header-like pair (shape, resolved options) and random params of our own model."""
    options = resolve_options(VIT.options, {
        "image_size": 12, "patch_size": 4, "num_classes": 5, **options}, "test")
    tree = jax.eval_shape(make_model(VIT, TRANSFORMER, shape, options).init, jax.random.key(0))
    rng = np.random.default_rng(3)
    return options, jax.tree.map(
        lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), tree)


# --- reading ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FOLDERS)
def test_reads_what_transformers_and_timm_wrote(name, outputs):
    header, params = read(FOLDERS[name], GOLDEN / name)
    model, _ = model_of(header)
    expected = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(
        lambda a: (a.shape, a.dtype), expected)
    difference = np.abs(apply(header, params, outputs["image"]) - outputs[name]).max()
    assert difference <= TOLERANCE
    assert set(header.files) == {"config.json", "model.safetensors"}


def test_activation_and_eps_are_theirs(outputs):
    """Tanh's approximation of GELU would be noticed: exactness needs the option."""
    header, params = read("huggingface", GOLDEN / "hf_classifier")
    assert header.options["activation"] == "gelu_exact"
    assert header.options["norm_eps"] == 1e-12
    assert header.shape == Shape(TORCH.DEPTH, 0, d_model=TORCH.WIDTH, d_ff=TORCH.MLP_DIM,
                                 d_kv=TORCH.WIDTH // TORCH.HEADS, num_heads=TORCH.HEADS)
    other = apply(header, params, outputs["image"], activation="gelu")
    assert np.abs(other - outputs["hf_classifier"]).max() > TOLERANCE


@pytest.mark.parametrize("case", BIG_VISION.CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_reads_a_checkpoint_of_big_vision(case, golden, tmp_path):
    pool, position, *_ = case
    arrays = big_vision_arrays(golden, pool, position)
    np.savez(tmp_path / "x.npz", **{f"params/{name}": a for name, a in arrays.items()})
    # Fixed positions leave no trace of the image's size.
    size = {} if position == "learn" else {"image_size": BIG_VISION.IMAGE_SIZE}
    header, params = read("big_vision", tmp_path / "x.npz", **size)
    assert header.shape == SHAPE
    assert (header.options["pool_type"], header.options["position"]) == (pool, position)
    assert header.files == ("x.npz",)
    ours = apply(header, params, BIG_VISION.make_inputs()[0])
    assert np.abs(ours - golden[f"{pool}-{position}/logits"]).max() <= TOLERANCE


def stacked(arrays):
    apart = {k: v for k, v in arrays.items() if "encoderblock_" not in k}
    names = {k.split("/", 2)[2] for k in arrays if "encoderblock_" in k}
    return apart | {f"Transformer/encoderblock/{name}": np.stack(
        [arrays[f"Transformer/encoderblock_{i}/{name}"] for i in range(SHAPE.num_encoder_layers)])
        for name in names}


def before_linen(arrays):
    """Names of Flax before Linen; positions inside the encoder, the token's among them."""
    renamed = {}
    for name, array in arrays.items():
        for new, old in (("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
                         ("LayerNorm_1", "LayerNorm_2"), ("MlpBlock_0", "MlpBlock_3")):
            name = name.replace(new, old) if "encoderblock" in name else name
        renamed[name] = array
    position, token = renamed.pop("pos_embedding"), renamed["cls"]
    half = np.float32(0.5) * token  # a half is exact
    renamed["Transformer/posembed_input/pos_embedding"] = np.concatenate([half, position], axis=1)
    renamed["cls"] = token - half
    return renamed


def with_inlined_head(arrays):
    return {name.removeprefix("MAPHead_0/"): array for name, array in arrays.items()}


LAYOUTS = {
    "bare": ("gap", lambda a: a),
    "optax": ("gap", lambda a: {**{f"params/{k}": v for k, v in a.items()},
                                **{f"opt/0/mu/{k}": 7 * v for k, v in a.items()},
                                "opt/0/count": np.int32(3)}),
    "flax optimizer": ("gap", lambda a: {**{f"opt/target/{k}": v for k, v in a.items()},
                                         **{f"opt/state/{k}": 7 * v for k, v in a.items()}}),
    "two towers": ("map", lambda a: {**{f"params/img/{k}": v for k, v in a.items()},
                                     "params/txt/Embed_0/embedding": np.ones((3, 2)),
                                     "params/t": np.float32(1)}),
    "scanned": ("map", stacked),
    "before Linen": ("tok", before_linen),
    "inlined MAP head": ("map", with_inlined_head),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_big_vision_is_the_same_model(layout, golden, tmp_path):
    pool, change = LAYOUTS[layout]
    arrays = big_vision_arrays(golden, pool, "learn")
    np.savez(tmp_path / "plain.npz", **arrays)
    np.savez(tmp_path / "other.npz", **change(arrays))
    header, params = read("big_vision", tmp_path / "other.npz")
    plain, expected = read("big_vision", tmp_path / "plain.npz")
    assert (header.shape, header.options) == (plain.shape, plain.options)
    assert_equal(params, expected)


def test_reads_bfloat16(golden, tmp_path, outputs):
    """NumPy stores it as two bytes of nothing; safetensors names it."""
    arrays = big_vision_arrays(golden, "gap", "learn")
    short = {name: a.astype(ml_dtypes.bfloat16) for name, a in arrays.items()}
    np.savez(tmp_path / "x.npz", **short)
    np.savez(tmp_path / "y.npz", **{name: a.astype(np.float32) for name, a in short.items()})
    assert_equal(read("big_vision", tmp_path / "x.npz")[1],
                 read("big_vision", tmp_path / "y.npz")[1])
    folder = shutil.copytree(GOLDEN / "timm_tok", tmp_path / "timm")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: a.astype(ml_dtypes.bfloat16) for name, a in tensors.items()},
              folder / "model.safetensors")
    ours = apply(*read("timm", folder), outputs["image"])
    assert 1e-4 < np.abs(ours - outputs["timm_tok"]).max() < 0.3


@pytest.mark.parametrize(("format_name", "name"), [
    ("big_vision", "x.npz"), ("huggingface", "hf_classifier"), ("timm", "timm_map")])
def test_positions_are_resampled_on_request(format_name, name, golden, tmp_path):
    path = GOLDEN / name
    if format_name == "big_vision":
        path = tmp_path / name
        np.savez(path, **big_vision_arrays(golden, "tok", "learn"))
    header, params = read(format_name, path)
    larger = 2 * header.options["image_size"]
    _, resampled = read(format_name, path, image_size=larger)
    grid = larger // header.options["patch_size"]
    expected = resample_position(params["position"]["embedding"], grid)
    assert expected.shape == (1, grid**2, header.shape.d_model)
    assert np.array_equal(resampled["position"]["embedding"], expected)
    assert_equal({**resampled, "position": params["position"]}, params)


@pytest.mark.parametrize(("name", "file", "values"), [
    ("hf_classifier", "preprocessor_config.json",
     {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
    ("hf_classifier", "preprocessor_config.json", {"do_normalize": False}),
    ("timm_tok", "config.json", {"pretrained_cfg": {
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}),
])
def test_images_of_another_range_are_folded_in(name, file, values, outputs, tmp_path):
    """The model is given what its own preprocessing makes of an image; ours is given [-1, 1]."""
    folder = shutil.copytree(GOLDEN / name, tmp_path / name)
    old = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**old, **values}))
    values = values.get("pretrained_cfg", values)
    mean = np.array(values.get("image_mean", values.get("mean", 0.0)))
    std = np.array(values.get("image_std", values.get("std", 1.0)))
    image = (outputs["image"] * std + mean) * 2 - 1  # theirs = (i - mean) / std, ours = 2 i - 1
    header, params = read(FOLDERS[name], folder)
    assert file in header.files
    difference = np.abs(apply(header, params, image.astype(np.float32)) - outputs[name]).max()
    assert difference <= TOLERANCE
    assert np.abs(apply(header, params, outputs["image"]) - outputs[name]).max() > 0.01


@pytest.mark.parametrize("name", ["hf_classifier", "timm_map"])
def test_reads_shards(name, tmp_path):
    folder = shutil.copytree(GOLDEN / name, tmp_path / name)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for i in range(2):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({n: tensors[n] for n in names[i::2]}, folder / file)
        places |= dict.fromkeys(names[i::2], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    header, params = read(FOLDERS[name], folder)
    assert len(header.files) == 4
    assert_equal(params, read(FOLDERS[name], GOLDEN / name)[1])


# --- by the command line ------------------------------------------------------------------------
@pytest.mark.parametrize("name", FOLDERS)
def test_import_and_export_give_the_arrays_back(name, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["import", "vision_vit", FOLDERS[name], str(GOLDEN / name), str(run)]) == 0
    assert main(["export", str(run), FOLDERS[name], str(out)]) == 0
    capsys.readouterr()
    (header, params), (again, back) = read(FOLDERS[name], GOLDEN / name), read(FOLDERS[name], out)
    assert (header.shape, header.options) == (again.shape, again.options)
    assert_equal(params, back)


def test_import_takes_another_image_size_only(tmp_path, capsys):
    source, run = str(GOLDEN / "timm_tok"), tmp_path / "run"
    command = ["import", "vision_vit", "timm", source, str(run), "--set"]
    assert main([*command, "num_classes=7"]) == 2
    assert "the checkpoint decides this option" in capsys.readouterr().err
    assert main([*command, "image_size=18"]) == 2
    assert "patch_size does not divide image_size" in capsys.readouterr().err
    assert not run.exists()
    assert main([*command, "image_size=24"]) == 0
    assert main(["export", str(run), "timm", str(tmp_path / "out")]) == 0
    header, params = read("timm", tmp_path / "out")
    assert header.options["image_size"] == 24
    assert_equal(params, read("timm", source, image_size=24)[1])


# --- writing ----------------------------------------------------------------------------------
SMALL = Shape(2, 0, d_model=16, d_ff=24, d_kv=8, num_heads=2)
TANH = {"activation": "gelu"}
WRITABLE = [
    *[("big_vision", {"pool_type": pool, **more}) for pool in ("gap", "tok", "map")
      for more in ({}, {"rep_size": 6}, {"num_classes": 0}, {"position": "sincos2d"})],
    *[("huggingface", {"pool_type": "tok", "norm_eps": 1e-12, **more}) for more in (
        {"activation": "gelu_exact"}, TANH, {"num_classes": 0}, {"num_classes": 0, "rep_size": 6})],
    *[("timm", {"pool_type": pool, "activation": activation, **more})
      for pool in ("gap", "tok", "map")
      for activation, more in (("gelu", {}), ("gelu_exact", {"num_classes": 0}))],
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in WRITABLE]


@pytest.mark.parametrize(("format_name", "options"), WRITABLE, ids=IDS)
def test_round_trips_are_exact(format_name, options, tmp_path):
    options, params = draw(SMALL, **options)
    path = tmp_path / "out"
    FORMATS[format_name].write(str(path), SMALL, options, params)
    header, back = read(format_name, path)
    assert header.shape == SMALL
    for name, value in header.options.items():
        assert options[name] == value, name
    assert_equal(back, params)


@pytest.mark.parametrize("format_name", ["huggingface", "timm"])
def test_fixed_positions_are_written_as_arrays(format_name, tmp_path):
    options, params = draw(SMALL, position="sincos2d", pool_type="tok")
    FORMATS[format_name].write(str(tmp_path / "out"), SMALL, options, params)
    header, back = read(format_name, tmp_path / "out")
    assert header.options["position"] == "learn"
    image = np.random.default_rng(0).uniform(-1, 1, (2, 12, 12, 3)).astype(np.float32)
    fixed = dataclasses.replace(header, options=dict(options))
    assert np.abs(apply(header, back, image) - apply(fixed, params, image)).max() <= 1e-6


@pytest.mark.parametrize("name", FOLDERS)
def test_writes_what_transformers_and_timm_wrote(name, tmp_path):
    """Array by array, the token's position apart: the sum of both enters the encoder."""
    header, params = read(FOLDERS[name], GOLDEN / name)
    _, options = model_of(header)
    FORMATS[FOLDERS[name]].write(str(tmp_path / "out"), header.shape, options, params)
    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = load_file(GOLDEN / name / "model.safetensors")
    added = {n for n in ours.keys() - theirs.keys() if ".bias" in n}  # zeros for qkv_bias false
    assert all(not a.any() for n, a in ours.items() if n in added and "qkv" not in n)
    assert {n for n in theirs if ".ls" not in n} == ours.keys() - added
    folded = {n for n in theirs if n.endswith(("cls_token", "position_embeddings", "pos_embed"))
              } if any("cls_token" in n for n in theirs) else set()
    for array in ours.keys() & theirs.keys():
        if array in folded or (name == "timm_gap" and (".proj." in array or ".fc2." in array)):
            continue  # summed, or scaled by LayerScale
        assert np.array_equal(ours[array], theirs[array]), array
    if folded:
        total = [sum(a[n][0, 0] for n in folded) for a in (ours, theirs)]
        assert np.array_equal(*total)
    said = json.loads((GOLDEN / name / "config.json").read_text())
    wrote = json.loads((tmp_path / "out" / "config.json").read_text())
    for key in ("hidden_act", "layer_norm_eps", "hidden_size", "id2label", "architectures",
                "global_pool", "num_classes", "pooler_output_size"):
        if name != "hf_classifier" or key != "pooler_output_size":
            assert wrote.get(key) == said.get(key), key


REFUSED = [
    ("big_vision", {}, {"activation": "gelu_exact"}, "activation"),
    ("big_vision", {}, {"norm_eps": 1e-12}, "norm_eps"),
    ("big_vision", {"d_kv": 4}, {}, "d_model / num_heads"),
    ("big_vision", {"share_kv": True}, {}, "share no projections"),
    ("huggingface", {}, {"pool_type": "gap"}, "class token"),
    ("huggingface", {}, {"pool_type": "tok", "rep_size": 4}, "before the head"),
    ("huggingface", {"share_heads": True}, {"pool_type": "tok"}, "share no projections"),
    ("timm", {}, {"rep_size": 4}, "before the head"),
    ("timm", {}, {"norm_eps": 1e-12}, "norm_eps"),
    ("timm", {"num_heads": 1}, {}, "d_model / num_heads"),
    ("timm", {"share_kv": True}, {}, "share no projections"),
]


@pytest.mark.parametrize(("format_name", "shape", "options", "said"), REFUSED, ids=str)
def test_what_a_layout_cannot_hold_is_refused(format_name, shape, options, said, tmp_path):
    shape = SMALL.replace(**shape)
    options, params = draw(shape, **options)
    with pytest.raises(NotApplicable, match=said):
        FORMATS[format_name].write(str(tmp_path / "out"), shape, options, params)
    assert not (tmp_path / "out").exists()


# --- the libraries themselves -------------------------------------------------------------------
def image_of(options):
    size = options.image_size
    rng = np.random.default_rng(5)
    return rng.uniform(-1, 1, (2, size, size, options.channels)).astype(np.float32)


@pytest.mark.parametrize(("format_name", "options"),
                         [c for c in WRITABLE if c[0] == "huggingface"],
                         ids=[i for i in IDS if i.startswith("huggingface")])
@pytest.mark.parametrize("d_kv", [8, 6])
def test_transformers_loads_what_we_write(format_name, options, d_kv, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    shape = SMALL.replace(d_kv=d_kv)
    options, params = draw(shape, **options)
    FORMATS[format_name].write(str(tmp_path / "out"), shape, options, params)
    kind = transformers.ViTForImageClassification if options.num_classes else transformers.ViTModel
    model, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    absent = {"pooler.dense.weight", "pooler.dense.bias"} if not (
        options.num_classes or options.rep_size) else set()
    assert set(info["missing_keys"]) == absent
    assert not info["unexpected_keys"]
    model, image = model.eval(), image_of(options)
    if absent:  # its pooler is random: what goes into it is ours
        import torch

        with torch.no_grad():
            states = model(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).last_hidden_state
        theirs = states[:, 0].numpy()
    else:
        theirs = TORCH.outputs(model, image)
    header, _ = read(format_name, tmp_path / "out")
    assert np.abs(apply(header, params, image) - theirs).max() <= TOLERANCE


@pytest.mark.parametrize(("format_name", "options"), [c for c in WRITABLE if c[0] == "timm"],
                         ids=[i for i in IDS if i.startswith("timm")])
def test_timm_loads_what_we_write(format_name, options, tmp_path):
    pytest.importorskip("torch")
    try:
        timm = TORCH.import_timm()
    except ImportError as error:
        pytest.skip(str(error))
    options, params = draw(SMALL, **options)
    FORMATS[format_name].write(str(tmp_path / "out"), SMALL, options, params)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    image = image_of(options)
    header, _ = read(format_name, tmp_path / "out")
    difference = np.abs(apply(header, params, image) - TORCH.outputs(model, image)).max()
    assert difference <= TOLERANCE


@pytest.mark.parametrize(("format_name", "options"),
                         [c for c in WRITABLE if c[0] == "big_vision"],
                         ids=[i for i in IDS if i.startswith("big_vision")])
@pytest.mark.parametrize("scan", [False, True])
def test_big_vision_loads_what_we_write(format_name, options, scan, tmp_path):
    try:
        vit, _ = BIG_VISION.import_big_vision()
    except ImportError as error:
        pytest.skip(f"runs with a big_vision checkout on PYTHONPATH: {error}")
    options, params = draw(SMALL, **options)
    path = tmp_path / "out.npz"
    FORMATS[format_name].write(str(path), SMALL, options, params)
    model = vit.Model(
        num_classes=options.num_classes or None, width=SMALL.d_model, scan=scan,
        depth=SMALL.num_encoder_layers, mlp_dim=SMALL.d_ff, num_heads=SMALL.num_heads,
        patch_size=(4, 4), pool_type=options.pool_type, posemb=options.position,
        rep_size=options.rep_size)
    image = image_of(options)
    init = model.init(jax.random.key(0), image)["params"]
    loaded = vit.load(init, str(path), {"scan": scan})
    _, out = model.apply({"params": loaded}, image)
    header, _ = read(format_name, path)
    ours = apply(header, params, image, image_size=options.image_size)
    theirs = out["logits" if options.num_classes else "pre_logits"]
    assert np.abs(ours - theirs).max() <= TOLERANCE
