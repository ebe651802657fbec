"""The ViT study: S, M and B, 6 to 32 layers, few-shot on big_vision's data sets.

    deepnarrow study configs/vision_vit/fewshot_scale.py --workdir runs/fewshot_scale \\
        --set modalities.vision_vit.data.upstream=folder:/data/imagenet21k --dry-run

"Scale Efficiently" (Tay et al. 2021) reports that a ViT-S with 24 layers has 15% fewer parameters
and 11% fewer FLOPs than ViT-B, and better few-shot accuracy. The text does not give the width of
its S. By our ledger (`deepnarrow shape vision_vit B/32 S/32-nl24 M/32-nl24 --set
num_classes=21843`; matmul FLOPs of a forward pass; the difference to B in brackets):

    21,843 classes    parameters                FLOPs an example
    B/32              104,250,963               8.677 G
    S/32-nl24          52,196,307  (-49.9%)     4.383 G  (-49.5%)    width 384, MLP 1536
    M/32-nl24          88,462,163  (-15.1%)     7.693 G  (-11.3%)    width 512, MLP 2048
    B/16              102,594,387              34.975 G
    S/16-nl24          51,368,019  (-49.9%)    18.196 G  (-48.0%)
    M/16-nl24          87,357,779  (-14.9%)    31.660 G   (-9.5%)

Both numbers of the claim fit width 512, MLP 2048 with patches of 32 and a head of 21,843 classes,
and no other combination above; with 1,000 classes M/32-nl24 has -11.8% and -11.3%. So the paper's S
is inferred to be today's M; big_vision's S (width 384) is half of B at 24 layers.

Layers are swept over the same widths, so that depth and width can be told apart. Transfer: the sets
of big_vision's `common_fewshot.py` under its protocol: images resized to 256 and cropped to 224, 1
to 25 shots, three draws, L2 of 2^10 (fixed; it is not neutral to width, so compare shapes of one
width first). Sets are prepared by `tfds build NAME --file_format=array_record` under `data/`.

21 cells x 3 seeds of 30 epochs, 5.5e20 FLOPs: 48 hours of a TPU v3-128 (64 chips of 123 TFLOP/s)
if 40% of the peak is reached (assumption), 8 to 152 minutes a run. Expected: the claim itself,
10-shot accuracy of M/32-nl24 at or above that of B/32; not run by us.
"""

from ml_collections import ConfigDict

LAYERS = (6, 8, 12, 16, 20, 24, 32)
SHAPES = tuple(f"{preset}/32" + ("" if layers == 12 else f"-nl{layers}")
               for preset in ("S", "M", "B") for layers in LAYERS)
BATCH = 4096

# Name -> folder of tensorflow-datasets, split of the shots and of the test, as in big_vision.
FEW_SHOT = {
    "caltech": ("caltech101/3.0.2", "train", "test"),
    "cars": ("cars196/2.1.0", "train", "test"),
    "cifar100": ("cifar100/3.0.2", "train", "test"),
    "dtd": ("dtd/3.0.1", "train", "test"),
    "imagenet": ("imagenet2012/5.1.0", "train[:65000]", "validation"),
    "pets": ("oxford_iiit_pet/4.0.0", "train", "test"),
    "uc_merced": ("uc_merced/2.0.0", "train[:1000]", "train[1000:]"),
}


def get_config() -> ConfigDict:
    """One modality x 21 shapes x three seeds."""
    return ConfigDict({
        "name": "fewshot_scale",
        "seeds": (0, 1, 2),
        "run": {"log_every": 50, "eval_every": 5000, "checkpoint_every": 1000},
        "modalities": {"vision_vit": {
            "shapes": SHAPES,
            "options": {"loss": "sigmoid", "pool_type": "gap", "compute_dtype": "bfloat16"},
            "data": data(),
            "protocol": {
                "batch_size": BATCH,
                "budget": {"kind": "epochs", "amount": 30},
                "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine",
                              "warmup_steps": 10_000, "weight_decay": 1e-4, "clip_norm": 1.0},
                "few_shot": {"tasks": tuple(FEW_SHOT), "shots": (1, 5, 10, 25), "seeds": 3},
            },
        }},
    })


def data() -> dict:
    """ImageNet-21k upstream, big_vision's few-shot sets."""
    return {
        "upstream": "folder:data/imagenet21k",
        "train": "all[51200:]", "validation": "all[25600:51200]",
        "train_pp": ({"op": "inception_crop", "size": 224}, {"op": "flip"}, {"op": "value_range"}),
        "eval_pp": ({"op": "resize", "size": 256}, {"op": "central_crop", "size": 224},
                    {"op": "value_range"}),
        "channels": 3,
        "convert": ("palette", "alpha", "cmyk"),
        "transfer": {
            name: {"source": f"tfds:data/{folder}", "train": train, "validation": "", "test": test,
                   "pp": ()}
            for name, (folder, train, test) in FEW_SHOT.items()},
    }
