"""Makes `golden_preprocess.npz`: what TensorFlow and big_vision make of one image.

    python tests/vision_vit/make_preprocess_golden.py BIG_VISION_CHECKOUT golden_preprocess.npz

Made with tensorflow-cpu 2.21.0 and big_vision 0127fb6. big_vision's RandAugment imports
tensorflow_addons, which is no longer published: the three functions that it takes from there are
restated below on TensorFlow's own projective transform, as tensorflow_addons 0.23 defines them.

Keys: `image` (uint8 [40, 48, 3]); `randaugment/OP@SETTING`; `resize/HEIGHTxWIDTH` and
`resize_grey/...` (uint8, antialiased bilinear); `boxes/HEIGHTxWIDTH` (mean and standard deviation
of above, left, height, width over 20,000 inception crops of area 0.05 to 1, ratio 0.75 to 1.33).
"""

import sys
import types

import numpy as np
import tensorflow as tf

REPLACE = [128, 128, 128]
DRAWS = 20_000


def transform(image, matrix):
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None], transforms=tf.reshape(tf.cast(matrix, tf.float32), [1, 8]),
        output_shape=tf.shape(image)[:2], fill_value=0.0, interpolation="NEAREST",
        fill_mode="CONSTANT")[0]


def translate(image, shift):
    return transform(image, [1.0, 0.0, -shift[0], 0.0, 1.0, -shift[1], 0.0, 0.0])


def rotate(image, angle):
    height, width = float(image.shape[0] - 1), float(image.shape[1] - 1)
    cos, sin = tf.cos(tf.constant(angle, tf.float32)), tf.sin(tf.constant(angle, tf.float32))
    x = (width - (cos * width - sin * height)) / 2.0
    y = (height - (sin * width + cos * height)) / 2.0
    return transform(image, tf.stack([cos, -sin, x, sin, cos, y, 0.0, 0.0]))


def load_autoaugment(checkout):
    image = types.ModuleType("tensorflow_addons.image")
    image.transform, image.translate, image.rotate = transform, translate, rotate
    addons = types.ModuleType("tensorflow_addons")
    addons.image = image
    sys.modules |= {"tensorflow_addons": addons, "tensorflow_addons.image": image}
    sys.path.insert(0, checkout)
    from big_vision.pp import autoaugment

    return autoaugment


def make_image():
    rng, ramp = np.random.default_rng(0), np.linspace(0, 1, 40)
    red = ramp[:, None] * 200 + rng.normal(0, 20, (40, 48))
    green = ramp[::-1, None] * 90 + 60 + rng.normal(0, 30, (40, 48))
    blue = np.outer(ramp, np.linspace(0, 1, 48)) * 230
    return np.clip(np.stack([red, green, blue], -1), 0, 255).astype(np.uint8)


def augmented(aa, image):
    yield "AutoContrast@", aa.autocontrast(image)
    yield "Equalize@", aa.equalize(image)
    yield "Invert@", aa.invert(image)
    for bits in (2, 6):
        yield f"Posterize@{bits}", aa.posterize(image, bits)
    yield "Solarize@100", aa.solarize(image, 100)
    yield "SolarizeAdd@66", aa.solarize_add(image, 66)
    for factor in (0.4, 1.9, 2.8):
        for name in ("Color", "Contrast", "Brightness", "Sharpness"):
            yield f"{name}@{factor}", aa.NAME_TO_FUNC[name](image, factor)
    for name, settings in (("ShearX", (0.21, -0.45)), ("ShearY", (0.21, -0.45)),
                           ("TranslateX", (7.0, -15.5)), ("TranslateY", (7.0, -15.5)),
                           ("Rotate", (20.0, -37.5))):
        for setting in settings:
            yield f"{name}@{setting}", aa.NAME_TO_FUNC[name](image, setting, REPLACE)


def boxes(height, width):
    tf.random.set_seed(0)
    draws = []
    for _ in range(DRAWS):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            [height, width, 3], tf.zeros([0, 0, 4]), area_range=(0.05, 1.0),
            aspect_ratio_range=(0.75, 1.33), min_object_covered=0,
            use_image_if_no_bounding_boxes=True)
        draws.append([*begin.numpy()[:2], *size.numpy()[:2]])
    return np.stack([np.mean(draws, axis=0), np.std(draws, axis=0)])


def main(checkout, out):
    image, aa = make_image(), load_autoaugment(checkout)
    made = {"image": image}
    for name, pixels in augmented(aa, tf.constant(image)):
        made[f"randaugment/{name}"] = pixels.numpy()
    for height, width in ((20, 24), (13, 31), (64, 100), (40, 20)):
        for kind, source in (("resize", image), ("resize_grey", image[..., :1])):
            pixels = tf.image.resize(source, (height, width), antialias=True)
            made[f"{kind}/{height}x{width}"] = tf.cast(pixels, tf.uint8).numpy()
    for height, width in ((375, 500), (32, 32), (400, 100)):
        made[f"boxes/{height}x{width}"] = boxes(height, width)
    np.savez_compressed(out, **made)


if __name__ == "__main__":
    main(*sys.argv[1:])
