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

# The baseline turned into cpu-1h one change at a time, but for its length.
# Each rung has the arithmetic of the first: 6 blocks see twice as many images as 12 do, an image of 16x16 costs a
# quarter of one of 32x32, and width 128 costs less than half of width 192.
NO_POLICY = f"{VIT} --no-auto-augment"
NO_DROPOUT = f"{NO_POLICY} --dropout 0"
SMOOTHED = f"{NO_DROPOUT} --label-smoothing 0.1"
BATCH_128 = f"{SMOOTHED} --batch-size 128"
SIX_BLOCKS = f"{BATCH_128} --depth 6"
POOLED = f"{SIX_BLOCKS} --global-pool avg"
RELATIVE = f"{POOLED} --pos-embed relative"
QK_NORM = f"{RELATIVE} --qk-norm"
MUON = f"{QK_NORM} --optimizer muon"
ZERO_START = f"{MUON} --zero-init"
RATE = f"{ZERO_START} --learning-rate 0.002"
LINEAR = f"{RATE} --schedule linear"
SMALL_FIRST = f"{LINEAR} --small-images-share 0.8"
NARROW = f"{SMALL_FIRST} --embed-dim 128 --num-heads 4"
BATCH_256 = f"{NARROW} --batch-size 256"
LATE_DECAY = f"{BATCH_256} --schedule wsd"
FAST_POSITIONS = f"{LATE_DECAY} --rel-pos-lr-scale 30"
AUGMENTED = f"{FAST_POSITIONS} --auto-augment"
CUTMIX = f"{AUGMENTED} --cutmix-alpha 1 --mix-probability 0.5"

CPU_15MIN = f"{VIT} --preset cpu-15min"

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
        "2-no-auto-augment": Experiment(NO_POLICY),
        "3-no-dropout": Experiment(NO_DROPOUT),
        "4-label-smoothing": Experiment(SMOOTHED),
        "5-batch-128": Experiment(BATCH_128),
        "6-six-blocks": Experiment(SIX_BLOCKS, epochs=2),
        "7-mean-pooling": Experiment(POOLED, epochs=2),
        "8-relative-positions": Experiment(RELATIVE, epochs=2),
        "9-qk-norm": Experiment(QK_NORM, epochs=2),
        "10-muon": Experiment(MUON, epochs=2),
        "11-zero-start": Experiment(ZERO_START, epochs=2),
        "12-rate-0.002": Experiment(RATE, epochs=2),
        "13-linear-decay": Experiment(LINEAR, epochs=2),
        "14-small-images-first": Experiment(SMALL_FIRST, epochs=4.8),
        "15-width-128": Experiment(NARROW, epochs=10.4),
        "16-batch-256": Experiment(BATCH_256, epochs=10.4),
        "17-late-decay": Experiment(LATE_DECAY, epochs=10.4),
        "18-fast-positions": Experiment(FAST_POSITIONS, epochs=10.4),
        "19-auto-augment": Experiment(AUGMENTED, epochs=10.4),
        "20-cutmix": Experiment(CUTMIX, epochs=10.4),
        "21-muon-0.005": Experiment(f"{CUTMIX} --muon-learning-rate 0.005", epochs=10.4),
    },
    # cpu-15min, each time with one part of its model as in the baseline
    "leave-one-out": {
        "as-it-is": Experiment(CPU_15MIN),
        "usual-start": Experiment(f"{CPU_15MIN} --no-zero-init"),
        "no-qk-norm": Experiment(f"{CPU_15MIN} --no-qk-norm"),
        "class-token": Experiment(f"{CPU_15MIN} --global-pool token"),
        "learned-positions": Experiment(f"{CPU_15MIN} --pos-embed learn"),
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
