"""The small runs that the faults are done to, and what makes two runs the same."""

import re
from pathlib import Path

from tests.same_runs import assert_same_bits
from training import checkpoint

TRAIN = "train_vit_cifar10.py"
STEPS, EVAL_BATCHES = 16, 3  # of an epoch
SMALL = [
    "--preset=demo", "--num-epochs=3", "--warmup-epochs=1", "--depth=1", "--embed-dim=24", "--dropout=0.1",
    "--auto-augment", "--save-every=2", "--device=cpu",
]  # fmt: skip
TINY = [*SMALL, "--max-train-images=256", "--batch-size=16", "--precision=fp32"]
NUM_PICTURES = 241  # for training: 15 batches of 16 and one of a single picture
# The flags of a real run: bf16, every augmentation, MixUp and CutMix. They need a --data-dir and a --batch-size too.
PICTURES = [
    *SMALL, "--dataset=image-folder", "--precision=bf16", "--random-erasing=0.25", "--mixup-alpha=0.8",
    "--cutmix-alpha=1", "--label-smoothing=0.1",
]  # fmt: skip
# The settings of the runs, as the table of faults calls them.
ON_DIGITS = "digits, fp32, eager"
ON_PICTURES = "pictures, bf16, eager, MixUp and CutMix"
COMPILED = "pictures, bf16, compiled, MixUp and CutMix"
TWO_RANKS = f"{COMPILED}, two ranks"
OFTEN = "--save-minutes=0.0002"  # every 12 ms: a step takes 3
EACH_STEP = "--save-minutes=0.000001"
NEVER = "--save-minutes=0"  # but at the ends of the epochs
FIGURES = ("augmented_images.png",)  # not training_curves.png, which also shows how long the epochs took


def content_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(folder: Path, unbroken: Path) -> None:
    """Assert that both runs have the same files, and the same bits of model, optimizer, random state and history."""
    assert content_of(folder).keys() == content_of(unbroken).keys()  # so no temporary file either
    # last.prev.pth was saved at another moment
    assert_same_bits(folder, unbroken, {path.name for path in unbroken.glob("*.pth")} - {"last.prev.pth"})
    for name in FIGURES:
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name


def assert_one_line(err: str, *words: str) -> None:
    """Assert that it is an error of one line that holds these words."""
    assert re.fullmatch(r"error: .+\n", err)
    assert all(word in err for word in words), err


def position(folder: Path) -> tuple[int, int]:
    """Return where the folder's run would go on: the epochs done, and the steps of the next one."""
    saved = checkpoint.load(folder / "last.pth")
    return saved["epoch"], saved["epoch_sums"]["step"]


def can_resume(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("last.pth", "last.prev.pth"))
