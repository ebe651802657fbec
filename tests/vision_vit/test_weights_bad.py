"""Foreign checkpoints that cannot be: each is refused in one line that names what is wrong."""

from __future__ import annotations

import json
import pickle
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deepnarrow.errors import InputError
from deepnarrow.npz import read_headers
from deepnarrow_vision_vit.plugin import deepnarrow_register_modalities

HERE = Path(__file__).parent
GOLDEN = HERE / "golden_weights"
FORMATS = deepnarrow_register_modalities()[0].checkpoint_formats
WEIGHTS, CONFIG = "model.safetensors", "config.json"
FIRST = "Transformer/encoderblock_0/"


def refuse(format_name, path, *said, stage="inspect"):
    """The error's text, from `inspect` or from `read` after a successful `inspect`."""
    found = FORMATS[format_name]
    header = None if stage == "inspect" else found.inspect(str(path))
    with pytest.raises(InputError) as caught:
        found.inspect(str(path)) if header is None else found.read(str(path), header)
    text = str(caught.value)
    assert "\n" not in text
    assert Path(path).name in text
    for words in said:
        assert words in text, text


# --- big_vision ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def arrays():
    with np.load(HERE / "golden.npz") as archive:
        flat = {k.removeprefix("params/"): archive[k] for k in archive.files if "params/" in k}
    return {k: v for k, v in flat.items() if k != "cls" and not k.startswith("MAPHead_0")}


def save(path, arrays, **changed):
    """Writes an .npz; a changed array of None is left out."""
    arrays = {**arrays, **changed}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


@pytest.mark.parametrize(("changed", "said"), [
    ({"embedding/kernel": None}, ["is no ViT", "embedding/kernel"]),
    ({"head/kernel": None}, ["1 array is missing", "head/kernel"]),
    ({"Transformer/encoder_norm/scale": None}, ["missing", "Transformer/encoder_norm/scale"]),
    ({f"{FIRST}MlpBlock_0/Dense_1/kernel": np.ones((64, 31))},
     [f"{FIRST}MlpBlock_0/Dense_1/kernel does not fit", "[64, 31]", "[64, 32]"]),
    ({"extra/kernel": np.ones(2)}, ["without a place", "extra/kernel"]),
    ({"pos_embedding": np.ones((1, 15, 32))}, ["pos_embedding is not of a square", "15"]),
    ({"embedding/kernel": np.ones((4, 2, 3, 32))}, ["not square", "4 x 2"]),
    ({"embedding/kernel": np.ones((4, 4, 32))}, ["embedding/kernel is not of a ViT", "4 axes"]),
    ({"head/bias": np.ones(5, np.int64)}, ["head/bias does not hold real numbers", "int64"]),
    ({"head/bias": np.array(["a"] * 5)}, ["head/bias does not hold real numbers"]),
    ({"Transformer/encoderblock_7/LayerNorm_0/scale": np.ones(32)}, ["missing", "encoderblock_2"]),
    ({"Transformer/encoderblock_99999999/LayerNorm_0/scale": np.ones(32)},
     ["num_encoder_layers is out of range"]),
], ids=str)
def test_npz_that_is_no_vit(changed, said, arrays, tmp_path):
    if "num_encoder_layers" in said[0]:
        with pytest.raises(InputError, match=said[0]):
            FORMATS["big_vision"].inspect(str(save(tmp_path / "x.npz", arrays, **changed)))
        return
    refuse("big_vision", save(tmp_path / "x.npz", arrays, **changed), *said)


def test_npz_with_numbers_that_are_not_finite(arrays, tmp_path):
    kernel = arrays["head/kernel"].copy()
    kernel[1, 2] = np.nan
    refuse("big_vision", save(tmp_path / "x.npz", arrays, **{"head/kernel": kernel}),
           "head/kernel", "not finite", stage="read")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_not_read(arrays, tmp_path):
    sprung = tmp_path / "sprung"
    np.savez(tmp_path / "x.npz", **{**arrays, "head/bias": np.array([Trap(sprung)], object)})
    refuse("big_vision", tmp_path / "x.npz", "head/bias", "pickled objects")
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Trap(sprung)))
    for format_name in FORMATS:
        refuse(format_name, tmp_path / "x.pth", "is a pickle, which runs code", "Hint")
    for format_name, name in (("huggingface", "hf_classifier"), ("timm", "timm_tok")):
        folder = shutil.copytree(GOLDEN / name, tmp_path / name)
        (folder / WEIGHTS).unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
        refuse(format_name, folder, "holds pickled weights", "pytorch_model.bin", "Hint", WEIGHTS)
    assert not sprung.exists()


def test_files_that_are_no_npz(arrays, tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    refuse("big_vision", tmp_path / "text.npz", "cannot be read as an .npz file")
    (tmp_path / "empty.npz").write_bytes(b"")
    refuse("big_vision", tmp_path / "empty.npz", "cannot be read as an .npz file")
    (tmp_path / "folder").mkdir()
    refuse("big_vision", tmp_path / "folder", "is not a file", "tensorstore")
    with zipfile.ZipFile(tmp_path / "none.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refuse("big_vision", tmp_path / "none.npz", "holds no arrays")
    save(tmp_path / "whole.npz", arrays)
    data = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    refuse("big_vision", tmp_path / "cut.npz", "cannot be read as an .npz file")


def test_a_flipped_byte_is_noticed(arrays, tmp_path):
    """In the numbers of an array: the archive's checksum tells."""
    path = save(tmp_path / "x.npz", arrays)
    data = bytearray(path.read_bytes())
    data[data.index(arrays["head/kernel"].tobytes()) + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"head/kernel.*CRC"):  # by `inspect` in a small file
        FORMATS["big_vision"].read(str(path), FORMATS["big_vision"].inspect(str(path)))


def claim(path, name, shape, dtype="<f4"):
    """Writes an .npz whose only array claims a shape that it does not have."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
                         + header + b"1234")
    return path


@pytest.mark.parametrize("shape", ["(1000000, 1000000)", "(-1,)", "(2**70,)", "1", "('a',)"])
def test_sizes_are_checked_before_anything_is_allocated(shape, tmp_path):
    path = claim(tmp_path / "x.npz", "embedding/kernel", shape)
    tracemalloc.start()
    refuse("big_vision", path, "embedding/kernel")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


def test_an_archive_that_unpacks_to_very_much_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(3_000_000, np.float32))
    with pytest.raises(InputError, match="packed too tightly"):
        read_headers(tmp_path / "x.npz", "x.npz")


# --- folders ------------------------------------------------------------------------------------
CASES = [("huggingface", "hf_classifier"), ("timm", "timm_tok")]


def copy(tmp_path, name, config=None, tensors=None):
    """A golden folder with changed values of its config, and arrays; None leaves one out."""
    folder = shutil.copytree(GOLDEN / name, tmp_path / name)
    values = json.loads((folder / CONFIG).read_text())
    for key, value in (config or {}).items():
        outer, _, inner = key.rpartition(".")
        (values[outer] if outer else values)[inner] = value
    (folder / CONFIG).write_text(json.dumps(values))
    arrays = {**load_file(folder / WEIGHTS), **(tensors or {})}
    save_file({k: v for k, v in arrays.items() if v is not None}, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(("format_name", "name"), CASES)
def test_folders_that_are_damaged(format_name, name, tmp_path):
    (tmp_path / "none").mkdir()
    refuse(format_name, tmp_path / "none", "has no weights", WEIGHTS)
    folder = copy(tmp_path, name)
    refuse(format_name, folder / WEIGHTS, "is not a folder", CONFIG)
    data = (folder / WEIGHTS).read_bytes()
    for content in (b"", b"\xff" * 50, data[:100], data[:-4], data + b"more"):
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(InputError, match=r"model.safetensors.*no whole safetensors"):
            FORMATS[format_name].inspect(str(folder))
    (folder / WEIGHTS).write_bytes(data)
    for content in ("", "[1]", "{'a': 1}", "[" * 100_000):
        (folder / CONFIG).write_text(content)
        with pytest.raises(InputError, match=r"config.json.*is no JSON"):
            FORMATS[format_name].inspect(str(folder))
    (folder / CONFIG).unlink()
    with pytest.raises(InputError, match=r"config.json.*is missing"):
        FORMATS[format_name].inspect(str(folder))
    (folder / CONFIG).symlink_to(GOLDEN / name / CONFIG)
    with pytest.raises(InputError, match=r"config.json.*is a link"):
        FORMATS[format_name].inspect(str(folder))


@pytest.mark.parametrize(("format_name", "name"), CASES)
def test_lone_shards_and_integers_are_refused(format_name, name, tmp_path):
    folder = copy(tmp_path, name)
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    refuse(format_name, folder, "has no weights", f"{WEIGHTS}.index.json")
    shutil.rmtree(folder)
    bias = "classifier.bias" if format_name == "huggingface" else "head.bias"
    folder = copy(tmp_path, name, tensors={bias: np.ones(5, np.int64)})
    refuse(format_name, folder, f"{bias}", "no array of floats", "I64")


HF, LAYER = "vit.encoder.layer.1.", "encoder.layer.1."


@pytest.mark.parametrize(("config", "tensors", "said"), [
    ({"model_type": "dinov2"}, {}, ["is of another model", "dinov2"]),
    ({"architectures": ["ViTForMaskedImageModeling"]}, {}, ["is of another model"]),
    ({"hidden_act": "quick_gelu"}, {}, ["hidden_act", "quick_gelu", "gelu_pytorch_tanh"]),
    ({"layer_norm_eps": -1}, {}, ["layer_norm_eps is out of range"]),
    ({"num_attention_heads": 3}, {}, ["does not divide hidden_size", "3 and 16"]),
    ({"hidden_size": "16"}, {}, ["hidden_size is not a positive integer"]),
    ({"num_hidden_layers": True}, {}, ["num_hidden_layers is not a positive integer"]),
    ({"image_size": [12, 16]}, {}, ["image_size is not a positive integer"]),
    ({"num_hidden_layers": 3}, {}, ["missing", "encoder.layer.2."]),
    ({"num_hidden_layers": 1}, {}, ["without a place", "encoder.layer.1."]),
    ({"intermediate_size": 32}, {}, ["intermediate.dense.weight does not fit", "[24, 16]",
                                     "[32, 16]"]),
    ({"image_size": 16}, {}, ["position_embeddings does not fit", "[1, 9, 16]", "[1, 16, 16]"]),
    ({}, {f"{HF}layernorm_before.bias": None}, ["missing", f"{LAYER}layernorm_before.bias"]),
    ({}, {f"{HF}attention.attention.key.bias": None}, ["missing", "attention.key.bias"]),
    ({}, {"vit.embeddings.mask_token": np.ones((1, 1, 16), np.float32)},
     ["without a place", "mask_token"]),
    ({}, {"vit.embeddings.cls_token": np.ones((1, 1, 8), np.float32)}, ["does not fit"]),
])
def test_hugging_face_folders_that_contradict_themselves(config, tensors, said, tmp_path):
    refuse("huggingface", copy(tmp_path, "hf_classifier", config, tensors), *said)


def test_a_pooler_of_another_activation_is_refused(tmp_path):
    refuse("huggingface", copy(tmp_path, "hf_pooler", {"pooler_act": "relu"}), "pooler_act", "tanh")


@pytest.mark.parametrize("values", [
    {"image_mean": [0.5, 0.5]}, {"image_std": [0.5, 0.5, 0]}, {"image_mean": "half"},
    {"image_mean": [0.5, 0.5, float("nan")]}])
def test_statistics_that_cannot_be(values, tmp_path):
    folder = copy(tmp_path, "hf_classifier")
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    refuse("huggingface", folder, "is not a number for each channel")


@pytest.mark.parametrize(("config", "tensors", "said"), [
    ({"architecture": "swin_tiny"}, {}, ["architecture is not known", "swin_tiny"]),
    ({"architecture": "vit_base_patch16_clip_224"}, {}, ["architecture is not known"]),
    ({"architecture": 3}, {}, ["architecture is not known"]),
    ({"model_args": [1]}, {}, ["architecture is not known"]),
    ({"model_args.qk_norm": True}, {}, ["model_args.qk_norm makes another model"]),
    ({"model_args.reg_tokens": 4}, {}, ["model_args.reg_tokens makes another model"]),
    ({"model_args.act_layer": "quick_gelu"}, {}, ["act_layer", "quick_gelu"]),
    ({"model_args.num_heads": 3}, {}, ["num_heads does not divide", "3 and 16"]),
    ({"model_args.num_heads": None}, {}, ["num_heads is not a positive integer"]),
    ({"global_pool": "avg", "model_args.global_pool": "avg"}, {},
     ["global_pool cannot be held", "with a class token"]),
    ({}, {"fc_norm.weight": np.ones(16, np.float32)}, ["normalises after pooling"]),
    ({}, {"norm_pre.weight": np.ones(16, np.float32)}, ["before its first layer"]),
    ({}, {"reg_token": np.ones((1, 4, 16), np.float32)}, ["register tokens"]),
    ({}, {"blocks.0.ls1.gamma": np.ones(8, np.float32)}, ["ls1.gamma does not fit"]),
    ({}, {"blocks.1.attn.qkv.bias": None}, ["missing", "blocks.1.attn.k.bias"]),
    ({}, {"blocks.1.attn.q_norm.weight": np.ones(8, np.float32)}, ["without a place", "q_norm"]),
    ({}, {"pos_embed": np.ones((1, 12, 16), np.float32)}, ["pos_embed is not of a square"]),
    ({}, {"patch_embed.proj.weight": None}, ["is no ViT", "patch_embed.proj.weight"]),
    ({"pretrained_cfg.std": [0.5]}, {}, ["std is not a number for each channel"]),
])
def test_timm_folders_that_contradict_themselves(config, tensors, said, tmp_path):
    refuse("timm", copy(tmp_path, "timm_tok", config, tensors), *said)


def test_numbers_that_are_not_finite(tmp_path):
    bad = np.full(16, np.inf, np.float32)
    refuse("huggingface", copy(tmp_path, "hf_classifier", tensors={"vit.layernorm.bias": bad}),
           "layernorm.bias", "not finite", stage="read")
    refuse("timm", copy(tmp_path, "timm_tok", tensors={"norm.bias": bad}), "norm.bias",
           "not finite", stage="read")
