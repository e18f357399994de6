"""A folder's images are cached until one changes; a damaged or unwritable cache never stops a run."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training.data import image_folder as module
from training.data import load_dataset
from training.data.image_folder import read_image_folder
from training.errors import RunError

ROOT = Path(__file__).parents[2]


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = ("train_images", "train_labels", "test_images", "test_labels")
    return one["class_names"] == other["class_names"] and all(torch.equal(one[name], other[name]) for name in tensors)


def cache_of(folder: Path) -> Path:
    [path] = folder.glob(".*")  # the only hidden file: no temporary one is left
    return path


@pytest.fixture
def no_decoding(monkeypatch):
    def fail(path: str, img_size: int):
        raise RunError(f"{path} was decoded")

    return lambda: monkeypatch.setattr(module, "read_image", fail)


def test_the_cache_is_read_unless_it_is_off_or_of_another_size(image_folder, no_decoding):
    first = read_image_folder(image_folder, 8, cache=True)
    no_decoding()
    assert same(read_image_folder(image_folder, 8, cache=True), first)
    assert len(load_dataset("image-folder", str(image_folder), 8).train_images) == 2
    for img_size, cache in ((8, False), (4, True)):
        with pytest.raises(RunError, match="decoded"):
            read_image_folder(image_folder, img_size, cache)
    with pytest.raises(RunError, match="decoded"):
        load_dataset("image-folder", str(image_folder), 8, cache=False)


def test_without_the_cache_nothing_is_written(image_folder):
    read_image_folder(image_folder, 8, cache=False)
    assert [path.name for path in sorted(image_folder.iterdir())] == ["test", "train"]


def change_a_picture(root: Path) -> None:
    path = root / "train" / "red" / "1.png"
    size = path.stat().st_size
    save(path, Image.new("RGB", (8, 8), (254, 0, 0)))
    assert path.stat().st_size == size  # only its modification time differs


def add_a_picture(root: Path) -> None:
    save(root / "test" / "red" / "2.png", Image.new("RGB", (8, 8)))


def remove_a_picture(root: Path) -> None:
    (root / "train" / "deep" / "deeper" / "2.png").unlink()


def move_a_picture(root: Path) -> None:
    (root / "train" / "deep" / "deeper" / "1.png").rename(root / "train" / "grey" / "2.png")


def add_a_class(root: Path) -> None:
    for split in ("train", "test"):
        save(root / split / "blue" / "1.png", Image.new("RGB", (8, 8)))


def rename_a_class(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "red").rename(root / split / "rouge")


def rename_a_class_with_subfolders(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "deep").rename(root / split / "down")


@pytest.mark.parametrize(
    "change",
    [
        change_a_picture, add_a_picture, remove_a_picture, move_a_picture, add_a_class, rename_a_class,
        rename_a_class_with_subfolders,
    ],
)  # fmt: skip
def test_the_cache_is_rewritten_after_a_change_of_pictures_or_classes(image_folder, change, no_decoding):
    for split in ("train", "test"):
        for number in (1, 2):
            save(image_folder / split / "deep" / "deeper" / f"{number}.png", Image.new("RGB", (8, 8)))
    before = read_image_folder(image_folder, 8, cache=True)
    change(image_folder)
    after = read_image_folder(image_folder, 8, cache=True)
    assert not same(after, before)
    assert same(after, read_image_folder(image_folder, 8, cache=False))
    no_decoding()
    assert same(read_image_folder(image_folder, 8, cache=True), after)


def flipped(content: bytes) -> bytes:
    """Change one byte, a pixel of the red picture."""
    place = content.index(bytes([255] * 64)) + 7
    return content[:place] + b"\x7f" + content[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: b"no cache", lambda content: content[: len(content) // 2], flipped],
    ids=["empty", "text", "half", "a pixel"],
)
def test_a_damaged_cache_is_rewritten(image_folder, damage):
    first = read_image_folder(image_folder, 8, cache=True)
    path = cache_of(image_folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert same(read_image_folder(image_folder, 8, cache=True), first)
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_a_note_and_no_error(image_folder, capsys):
    (image_folder / ".images-8.pt").mkdir()  # a folder stands in its place
    content = read_image_folder(image_folder, 8, cache=True)
    assert same(content, read_image_folder(image_folder, 8, cache=False))
    out, err = capsys.readouterr()
    assert out.startswith("note: the images are not cached: ")
    assert (out.count("\n"), err) == (1, "")
    assert cache_of(image_folder).is_dir()


READ_WITHOUT_CACHE = """
import hashlib, sys
from pathlib import Path
from training.data.image_folder import read_image_folder
print("ready", flush=True)
sys.stdin.readline()
for _ in range(10):
    Path(sys.argv[1], ".images-8.pt").unlink(missing_ok=True)
    content = read_image_folder(Path(sys.argv[1]), 8, cache=True)
    print(hashlib.md5(content["train_images"].numpy().tobytes()).hexdigest(), content["train_labels"].tolist())
"""


def test_two_runs_that_write_the_cache_at_once_both_get_whole_images(image_folder):
    pixels = np.random.default_rng(0).integers(256, size=(20, 16, 16, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        save(image_folder / "train" / "red" / f"{number}.png", Image.fromarray(picture))
    expected = read_image_folder(image_folder, 8, cache=False)
    command, pipe = [sys.executable, "-c", READ_WITHOUT_CACHE, str(image_folder)], subprocess.PIPE
    runs = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    for run in runs:
        assert run.stdout
        assert run.stdout.readline() == "ready\n"
    line = (
        f"{hashlib.md5(expected['train_images'].numpy().tobytes()).hexdigest()} {expected['train_labels'].tolist()}\n"
    )
    for run in runs:
        assert run.stdin
        run.stdin.write("go\n")
        run.stdin.flush()
    assert [run.communicate() for run in runs] == [(10 * line, "")] * 2
    assert same(torch.load(cache_of(image_folder), weights_only=True), expected)
