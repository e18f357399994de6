"""The experiments, by suite and name: `python run_experiments.py SUITE` runs them. Add a line to add an experiment."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Experiment:
    """A training script and its flags; the suite's flags (--epochs, --max-train-images and so on) come after them."""

    command: str
    """the script and its flags, as in a terminal"""
    images: float = 1.0
    """share of the training images"""
    epochs: float = 1.0
    """epochs, as a multiple of the suite's; the warmup, where the command leaves it open, stays as large a share"""


VIT, RESNET = "train_vit_cifar10.py", "train_resnet_cifar10.py"

# The baseline turned into cpu-1h step by step, but for its length.
# Each rung has the arithmetic of the first: 6 blocks see twice as many images as 12 do, an image of 16x16 costs a
# quarter of one of 32x32, and width 128 costs less than half of width 192.
NO_POLICY = f"{VIT} --no-auto-augment --dropout 0 --label-smoothing 0.1"
SIX_BLOCKS = f"{NO_POLICY} --depth 6 --batch-size 128"
POOLED = f"{SIX_BLOCKS} --global-pool avg"
RELATIVE = f"{POOLED} --pos-embed relative --qk-norm"
MUON = f"{RELATIVE} --optimizer muon --learning-rate 0.002 --zero-init --schedule linear"
SMALL_FIRST = f"{MUON} --small-images-share 0.8"
NARROW = f"{SMALL_FIRST} --embed-dim 128 --num-heads 4"
BATCH_256 = f"{NARROW} --batch-size 256"
LATE_DECAY = f"{BATCH_256} --schedule wsd"
FAST_POSITIONS = f"{LATE_DECAY} --rel-pos-lr-scale 30"
AUGMENTED = f"{FAST_POSITIONS} --auto-augment --cutmix-alpha 1 --mix-probability 0.5"

SUITES: dict[str, dict[str, Experiment]] = {
    # what the classic recipe suggests to try, and claims
    "recipe": {
        "baseline": Experiment(VIT),
        "patch2": Experiment(f"{VIT} --preset patch2"),
        "patch8": Experiment(f"{VIT} --preset patch8"),
        "no-augment": Experiment(f"{VIT} --preset no-augment"),
        "no-warmup": Experiment(f"{VIT} --preset no-warmup"),
        "small": Experiment(f"{VIT} --preset small"),
        "half-the-epochs": Experiment(VIT, epochs=0.5),
        "batch32": Experiment(f"{VIT} --batch-size 32"),
        "resnet18": Experiment(RESNET),
    },
    "patch-size": {f"patch{size}": Experiment(f"{VIT} --patch-size {size}") for size in (2, 4, 8, 16)},
    "ladder": {
        "1-baseline": Experiment(VIT),
        "2-crop-and-flip-only": Experiment(NO_POLICY),
        "3-six-blocks": Experiment(SIX_BLOCKS, epochs=2),
        "4-mean-pooling": Experiment(POOLED, epochs=2),
        "5-relative-and-qk-norm": Experiment(RELATIVE, epochs=2),
        "6-muon": Experiment(MUON, epochs=2),
        "7-small-images-first": Experiment(SMALL_FIRST, epochs=4.8),
        "8-width-128": Experiment(NARROW, epochs=10.4),
        "9-batch-256": Experiment(BATCH_256, epochs=10.4),
        "10-late-decay": Experiment(LATE_DECAY, epochs=10.4),
        "11-fast-positions": Experiment(FAST_POSITIONS, epochs=10.4),
        "12-auto-augment-and-cutmix": Experiment(AUGMENTED, epochs=10.4),
        "13-muon-0.005": Experiment(f"{AUGMENTED} --muon-learning-rate 0.005", epochs=10.4),
    },
    # a training on a tenth of the images sees each of them as often (epochs), or ten times as often (steps)
    "data-efficiency": {
        f"{name}-{share}%-equal-{equal}": Experiment(script, share / 100, 100 / share if equal == "steps" else 1.0)
        for name, script in (("vit", VIT), ("resnet18", RESNET))
        for share in (5, 10, 25, 50, 100)
        for equal in ("epochs", "steps")
        if share < 100 or equal == "epochs"
    },
    # the presets with a promise, each at its own length
    "presets": {name: Experiment(f"{VIT} --preset {name}") for name in ("cpu-15min", "cpu-1h", "overnight")},
}
