"""Operations against TensorFlow's, big_vision's and Pillow's results; chains and their errors."""

from __future__ import annotations

import doctest
import importlib
import io
import pathlib
import zlib

import numpy as np
import pytest
from image_files import encode, pixels
from PIL import Image

from deepnarrow.errors import InputError
from deepnarrow_vision_vit import preprocess, randaugment
from deepnarrow_vision_vit.images import decode, inspect, to_picture, to_pixels
from deepnarrow_vision_vit.preprocess import OPS, Form, build_chain, check_chain, inception_box

GOLDEN = np.load(pathlib.Path(__file__).with_name("golden_preprocess.npz"))
IMAGE = GOLDEN["image"]
RAW = Form(None, None, None, "raw")


def rng(seed=0):
    return np.random.default_rng(seed)


def chain_of(*steps, channels=3):
    return build_chain(steps, "pp", channels)


def apply(op, image, seed=0, **settings):
    made = OPS[op](**settings)(to_picture(image), rng(seed))
    return made if isinstance(made, np.ndarray) else to_pixels(made)


def decoded(raw, channels, **settings):
    return to_pixels(decode(raw, channels, **settings))


# --- against TensorFlow ---------------------------------------------------------------------------
FUNCTIONS = {**{k: (lambda i, _s, f=f: f(i)) for k, f in randaugment.PLAIN.items()},
             **{k: (lambda i, s, f=f: f(i, int(s))) for k, (f, _) in randaugment.LEVELS.items()},
             **{k: (lambda i, s, f=f: f(i, float(s))) for k, f in randaugment.ENHANCE.items()},
             **{k: (lambda i, s, f=f: f(i, float(s))) for k, (f, _) in randaugment.MOVES.items()}}


@pytest.mark.parametrize("name", [k for k in GOLDEN.files if k.startswith("randaugment/")])
def test_distortions_equal_big_visions(name):
    op, setting = name.removeprefix("randaugment/").split("@")
    made = FUNCTIONS[op](IMAGE, setting)
    assert made.dtype == np.uint8
    difference = np.abs(made.astype(int) - GOLDEN[name].astype(int))
    # TensorFlow's float convolution falls just below whole numbers, where ours is exact.
    assert difference.max() <= (2 if op == "Sharpness" else 0)
    assert (difference > 0).mean() < 0.01


def test_the_set_of_distortions_is_the_official_one():
    covered = {name.removeprefix("randaugment/").split("@")[0] for name in GOLDEN.files
               if name.startswith("randaugment/")}
    assert covered | {"Cutout"} == set(randaugment.NAMES)
    assert len(randaugment.NAMES) == 16


def test_strengths_at_a_magnitude():
    """By the original's formulas: 15 of 10 in its units."""
    image = pixels(1, size=32)[0]
    blended = randaugment._apply("Brightness", image, 15, rng())
    brighter = np.clip(image * np.float32(2.8), 0, 255).astype(np.uint8)
    assert np.array_equal(blended, brighter)
    assert np.array_equal(randaugment._apply("Posterize", image, 15, rng()), image & 0b11111100)
    assert np.array_equal(randaugment._apply("Posterize", image, 0, rng()), np.zeros_like(image))
    assert np.array_equal(randaugment._apply("Solarize", image, 5, rng()),
                          np.where(image < 128, image, 255 - image))
    moved = {randaugment._apply("TranslateX", image, 1, rng(s)).tobytes() for s in range(20)}
    assert moved == {randaugment.translate_x(image, p).tobytes() for p in (10.0, -10.0)}


def test_cutout_is_a_grey_square():
    image = np.zeros((200, 300, 3), np.uint8)
    cut = randaugment.cutout(image, 60, 150, 20)
    assert (cut == 128).all(axis=-1).sum() == (200 - 90) * 80
    assert (randaugment._apply("Cutout", image, 15, rng()) == 128).any()


def test_randaugment_draws_every_distortion_and_depends_on_the_generator_alone():
    image = pixels(1, size=160)[0]
    made = [apply("randaugment", image, seed, layers=2, magnitude=10) for seed in range(200)]
    assert len({m.tobytes() for m in made}) > 100
    assert np.array_equal(made[7], apply("randaugment", image, 7, layers=2, magnitude=10))
    names = [randaugment.NAMES[rng(seed).integers(16)] for seed in range(200)]
    assert set(names) == set(randaugment.NAMES)


@pytest.mark.parametrize("name", [k for k in GOLDEN.files if k.startswith("resize")])
def test_resize_is_tensorflows_up_to_rounding(name):
    kind, size = name.split("/")
    source = IMAGE if kind == "resize" else IMAGE[..., :1]
    made = to_pixels(preprocess.resize(to_picture(source), *map(int, size.split("x"))))
    assert made.shape == GOLDEN[name].shape
    # TensorFlow's result is cut off to whole numbers, Pillow's rounded, twice.
    difference = np.abs(made.astype(int) - GOLDEN[name])
    assert difference.max() <= 2
    assert (difference > 1).mean() < 0.001


@pytest.mark.parametrize("name", [k for k in GOLDEN.files if k.startswith("boxes")])
def test_inception_boxes_are_distributed_as_tensorflows(name):
    height, width = map(int, name.removeprefix("boxes/").split("x"))
    generator = rng(1)
    draws = np.array([inception_box(height, width, generator, area=(0.05, 1.0), ratio=(0.75, 1.33))
                      for _ in range(20_000)])
    above, left, h, w = draws.T
    assert (above >= 0).all()
    assert (left >= 0).all()
    assert (above + h <= height).all()
    assert (left + w <= width).all()
    mean, deviation = GOLDEN[name]
    # Both are samples of 20,000: 5 standard errors of a difference.
    assert np.abs(draws.mean(axis=0) - mean).max() < 5 * (2 / 20_000) ** 0.5 * deviation.max()
    assert np.allclose(draws.std(axis=0), deviation, rtol=0.04)


# --- other operations -----------------------------------------------------------------------------
def test_inception_crop_resizes_a_box_of_the_image():
    image = pixels(1, size=40)[0]
    above, left, h, w = inception_box(40, 40, rng(3), area=(0.05, 1.0), ratio=(0.75, 1.33))
    box = Image.fromarray(image).crop((left, above, left + w, above + h))
    expected = np.asarray(box.resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(apply("inception_crop", image, 3, size=16), expected)


def test_an_impossible_box_is_the_whole_image():
    assert inception_box(10, 1000, rng(), area=(0.99, 1.0), ratio=(1.0, 1.0)) == (0, 0, 10, 1000)


def test_crops_flip_and_pad():
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    assert np.array_equal(apply("central_crop", image, size=4), image[1:5, 2:6])
    padded = apply("pad", image, pixels=2)
    assert padded.shape == (10, 12, 3)
    assert np.array_equal(padded[2:-2, 2:-2], image)
    assert padded.sum() == image.sum()
    places = {apply("random_crop", image, s, size=4).tobytes() for s in range(300)}
    assert places == {image[y:y + 4, x:x + 4].tobytes() for y in range(3) for x in range(5)}
    flipped = [np.array_equal(apply("flip", image, s), image[:, ::-1]) for s in range(200)]
    assert 0.35 < np.mean(flipped) < 0.65
    assert np.array_equal(apply("grey_to_rgb", image[..., :1]), image[..., [0, 0, 0]])


def test_resize_small_keeps_the_aspect_ratio():
    image = pixels(1, size=60)[0][:40]
    assert apply("resize_small", image, size=20).shape == (20, 30, 3)
    assert OPS["resize_small"](20).result(Form(40, 60, 3, "uint8")) == Form(20, 30, 3, "uint8")


def test_value_range():
    values = apply("value_range", np.array([[[0, 51, 255]]], np.uint8), low=-1.0, high=1.0)
    assert values.dtype == np.float32
    assert np.allclose(values, [[[-1, -0.6, 1]]], atol=1e-6)
    other = apply("value_range", np.array([[[0, 255]]], np.uint8), low=0.0, high=2.0)
    assert np.allclose(other, [[[0, 2]]], atol=1e-6)


def test_decode_equals_pillow():
    image = pixels(1, size=32)[0]
    data = encode(image, "JPEG")
    assert np.array_equal(decoded(data, 3), np.asarray(Image.open(io.BytesIO(data))))
    grey = np.asarray(Image.open(io.BytesIO(data)).convert("L"))[..., None]
    assert np.array_equal(decoded(data, 1), grey)
    assert np.array_equal(decoded(decoded(data, 3), 1), grey)  # the array's way
    assert np.array_equal(decoded(encode(image[..., :1]), 3), image[..., [0, 0, 0]])


def test_declared_conversions():
    image = pixels(1, size=16)[0]

    def convert(mode, kind="PNG"):
        out = io.BytesIO()
        Image.fromarray(image).convert(mode).save(out, kind)
        return out.getvalue()

    palette, alpha, cmyk = convert("P"), convert("RGBA"), convert("CMYK", "JPEG")
    sixteen = encode_sixteen(image[..., 0].astype(np.uint16) * 257)
    for data, name in ((palette, "palette"), (alpha, "alpha"), (cmyk, "cmyk"),
                       (sixteen, "sixteen_bit")):
        with pytest.raises(InputError, match=f"declare convert=\\('{name}',\\)"):
            decoded(data, 3)
        assert decoded(data, 3, convert=(name,)).shape == (16, 16, 3)
    assert np.array_equal(decoded(alpha, 3, convert=("alpha",)), image)
    assert np.array_equal(decoded(sixteen, 1, convert=("sixteen_bit",)), image[..., :1])
    assert np.abs(decoded(palette, 3, convert=("palette",)).astype(int) - image).mean() < 40


def encode_sixteen(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def test_exif_orientation_is_ignored_unless_declared():
    image, out = pixels(1, size=16)[0][:8], io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(image).save(out, "PNG", exif=exif)
    assert np.array_equal(decoded(out.getvalue(), 3), image)
    assert np.array_equal(decoded(out.getvalue(), 3, exif="apply"), np.rot90(image, -1))


def test_what_cannot_be_decoded_is_found_on_inspection():
    good = encode(pixels(1, size=64)[0], "JPEG")
    assert inspect(good).problem == ""
    assert (inspect(good).mode, inspect(good).height) == ("RGB", 64)
    for share in (0.1, 0.5, 0.95):
        assert "truncated" in inspect(good[:int(len(good) * share)]).problem.lower()
    assert inspect(b"").problem == "is no JPEG and no PNG"
    out = io.BytesIO()
    Image.fromarray(pixels(1)[0]).save(out, "GIF")
    assert inspect(out.getvalue()).problem == "is no JPEG and no PNG"
    png = bytearray(encode(pixels(1)[0]))
    png[60] ^= 0xFF
    assert inspect(bytes(png)).problem.startswith("cannot be decoded")


def test_a_bomb_is_refused_by_its_header():
    """A PNG header that promises 100,000 x 100,000 pixels, and one just above our own cap."""
    for side in (100_000, 8_200):
        data = bytearray(encode(np.zeros((1, 1, 3), np.uint8)))
        data[16:24] = side.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
        assert "pixels" in inspect(bytes(data)).problem
        with pytest.raises(InputError, match="pixels"):
            decoded(bytes(data), 3)


# --- chains ---------------------------------------------------------------------------------------
def test_a_chain_gives_what_it_says():
    steps = ({"op": "inception_crop", "size": 16}, {"op": "flip"},
             {"op": "randaugment", "layers": 2, "magnitude": 15}, {"op": "value_range"})
    chain = chain_of(*steps)
    form = check_chain(chain, RAW, "pp")
    assert form == Form(16, 16, 3, "float32")
    image = chain(encode(pixels(1, size=40)[0]), rng(2))
    assert image.shape == (form.height, form.width, form.channels)
    assert image.dtype == np.float32
    assert image.min() >= -1
    assert image.max() <= 1
    assert np.array_equal(image, chain(encode(pixels(1, size=40)[0]), rng(2)))
    assert not np.array_equal(image, chain(encode(pixels(1, size=40)[0]), rng(4)))


@pytest.mark.parametrize(("steps", "said"), [
    (({"op": "inception_corp", "size": 8},), ["pp[0]", "did you mean inception_crop"]),
    (({"op": "resize", "sise": 8},), ["sise", "did you mean size"]),
    (({"op": "resize"},), ["size", "is missing"]),
    (({"op": "resize", "size": 0},), ["size", "out of range", "1"]),
    (({"op": "resize", "size": "8"},), ["size", "wrong type"]),
    (({"op": "inception_crop", "size": 8, "area_min": 0},), ["area_min"]),
    (({"op": "decode", "channels": 2},), ["channels", "1, 3"]),
    (({"op": "decode", "channels": 3, "exif": "appli"},), ["exif", "did you mean apply"]),
    (({"op": "flip"}, {"op": "decode", "channels": 3}), ["pp[1]", "decode comes first"]),
    ((8,), ["pp[0]", "is no operation"]),
    (({"op": "randaugment", "layers": 2, "magnitude": 99},), ["magnitude", "30"]),
], ids=str)
def test_bad_steps_are_named(steps, said):
    with pytest.raises(InputError) as caught:
        chain_of(*steps)
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(("steps", "said"), [
    (({"op": "value_range"}, {"op": "resize", "size": 8}), ["resize", "takes uint8", "float32"]),
    (({"op": "resize", "size": 8}, {"op": "value_range"}, {"op": "flip"}),
     ["flip", "takes uint8", "float32"]),
    (({"op": "resize", "size": 8},), ["does not end in numbers", "value_range"]),
    (({"op": "value_range"},), ["images of one size", "resize"]),
    (({"op": "resize", "size": 8}, {"op": "central_crop", "size": 9}, {"op": "value_range"}),
     ["central_crop", "larger than the image", "9"]),
    (({"op": "decode", "channels": 1}, {"op": "randaugment", "layers": 1, "magnitude": 5}),
     ["randaugment", "3 channels", "got 1"]),
], ids=str)
def test_steps_that_do_not_follow_are_named(steps, said):
    with pytest.raises(InputError) as caught:
        check_chain(chain_of(*steps), RAW, "pp")
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize("module", ["images", "splits", "preprocess"])
def test_the_documentation_is_right(module):
    results = doctest.testmod(importlib.import_module(f"deepnarrow_vision_vit.{module}"))
    assert results.failed == 0
    assert results.attempted > 0 or module == "preprocess"
