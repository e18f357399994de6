"""Which runs can be compared: the same data, split and test images."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from evaluation.run_record import RunRecord
from training.errors import UsageError

MEAN_TOLERANCE = 1e-3  # of a channel, in 0..1; decoders of JPEG differ by less
OTHER_SPLIT = "chose its best epoch on the {} images"


def require_comparable(records: Sequence[RunRecord]) -> None:
    """UsageError where runs learned from other data, chose their best epoch on another split, or were tested on others.

    It has a line for each run that is unlike the most, with its first reason. What a run does not say is not
    checked. Pixels are compared only where the images have the same size.
    """
    facts: list[tuple[str, Callable[[RunRecord], Any]]] = [
        ("was trained on {}", lambda run: run.config["dataset"]),
        ("has the classes {}", lambda run: ", ".join(run.about["data"]["class_names"])),
        (OTHER_SPLIT, lambda run: run.split),
        ("was tested on {} images", lambda run: run.num_test_images),
    ]
    for size in {run.config["img_size"]: None for run in records}:
        facts += [
            ("was trained on pictures with the channel means {}", pixel_means(records, size)),
            (
                "was tested on images with the SHA-256 {}",
                lambda run, size=size: run.config["img_size"] == size and run.own_evaluation.get("test_images_sha256"),
            ),
        ]
    left, problems = list(records), []
    for text, fact in facts:
        known = [(run, value) for run in left if (value := fact(run))]
        if not known:
            continue
        usual = Counter(value for _, value in known).most_common(1)[0][0]
        like = next(run.name for run, value in known if value == usual)
        for run, value in known:
            if value != usual:
                left.remove(run)
                one, other = (
                    text.format(f"{found:.80}" if isinstance(found, str) else found) for found in (value, usual)
                )
                advice = f"leave it out{', or train both with the same --val-size' * (text == OTHER_SPLIT)}"
                problems.append(f"{run.name} can't be compared with {like}: it {one}, the other {other}; {advice}")
    if problems:
        raise UsageError("\nerror: ".join(problems))


def pixel_means(records: Sequence[RunRecord], size: int) -> Callable[[RunRecord], str | None]:
    """A run's channel means if it learned from a folder's images of this size: they, not its name, tell folders apart.

    Of runs with almost the same means it is those of the first of `records`.
    """

    def means_of(run: RunRecord) -> list[float] | None:
        of_this_size = run.config["dataset"] == "image-folder" and run.config["img_size"] == size
        return run.about["data"].get("mean") if of_this_size else None

    known = [means for run in records if (means := means_of(run))]

    def first_like(run: RunRecord) -> str | None:
        if not (means := means_of(run)):
            return None
        return ", ".join(f"{mean:.4f}" for mean in next(one for one in known if same_means(one, means)))

    return first_like


def same_means(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the channel means are of the same pictures, by whichever decoder of JPEG."""
    return len(one) == len(other) and all(abs(a - b) <= MEAN_TOLERANCE for a, b in zip(one, other, strict=True))


def other_choice(records: Sequence[RunRecord]) -> str:
    """A warning where the runs held out different numbers of images to choose their best epochs on; else empty."""
    held_out: dict[int, list[str]] = {}
    for run in records:
        if run.split == "val":
            held_out.setdefault(run.config["val_size"], []).append(run.name)
    if len(held_out) < 2:
        return ""
    sizes = "; ".join(f"{size:,} images: {', '.join(names)}" for size, names in sorted(held_out.items()))
    return f"the runs chose their best epochs on different held-out images ({sizes}): compare them on the test images"
