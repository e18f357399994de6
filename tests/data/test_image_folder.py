"""Pictures of any mode and size become RGB of one size; an error names the picture that can't be read."""

import contextlib
import errno
import io
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from torchvision import datasets

from training.data import load_dataset
from training.data.image_folder import EXTENSIONS, find_samples, read_image, read_image_folder
from training.errors import RunError


def save(path: Path, image: Image.Image, **arguments) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **arguments)
    return path


def palette_image() -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image


def deep_image(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, np.uint16))


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("bilevel.png", Image.new("1", (8, 8), 1), (255, 255, 255)),
        ("grey.png", Image.new("L", (8, 8), 100), (100, 100, 100)),
        ("grey_alpha.png", Image.new("LA", (8, 8), (100, 255)), (100, 100, 100)),
        ("palette.png", palette_image(), (10, 20, 30)),
        ("palette.tif", palette_image(), (10, 20, 30)),
        ("alpha.png", Image.new("RGBA", (8, 8), (200, 100, 50, 255)), (200, 100, 50)),
        ("see_through.png", Image.new("RGBA", (8, 8), (0, 0, 0, 0)), (255, 255, 255)),
        ("half.png", Image.new("RGBA", (8, 8), (200, 100, 0, 128)), (227, 177, 127)),
        ("grey_see_through.png", Image.new("LA", (8, 8), (100, 0)), (255, 255, 255)),
        ("cmyk.tif", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0)),
        ("16_bit.png", deep_image(0x4040), (64, 64, 64)),
        ("16_bit.tif", deep_image(0xC0C0), (192, 192, 192)),
        ("16_bit.pgm", deep_image(0x2020), (32, 32, 32)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.mode if isinstance(value, Image.Image) else "",
)
def test_pictures_of_any_mode_become_rgb(image_folder, name, image, expected):
    save(image_folder / "train" / "grey" / name, image)
    content = read_image_folder(image_folder, 8, cache=False)
    assert content["class_names"] == ["grey", "red"]
    assert content["test_labels"].tolist() == [0, 1]
    assert content["test_images"][1].float().mean(dim=(1, 2)).tolist() == [255, 0, 0]
    np.testing.assert_allclose(
        content["train_images"][1], np.broadcast_to(np.reshape(expected, (3, 1, 1)), (3, 8, 8)), atol=1
    )


def test_a_picture_is_rotated_as_its_exif_orientation_says(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16, 0] = 255  # the left half is red
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: it is shown rotated by 90 degrees clockwise
    image = read_image(save(tmp_path / "turned.png", Image.fromarray(pixels), exif=exif), 8)
    assert image[0, :3].min() == 255  # the top half is
    assert image[0, 5:].max() == 0


def test_pictures_of_other_sizes_are_resized_as_pillow_does_it(tmp_path):
    for width, height in ((8, 8), (20, 13), (3, 50)):
        pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
        image = read_image(save(tmp_path / "picture.png", Image.fromarray(pixels)), 8)
        by_pillow = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR)  # with antialiasing
        np.testing.assert_array_equal(image.permute(1, 2, 0), by_pillow)


def no_train_folder(root: Path) -> Path:
    (root / "train").rename(root / "training")
    return root / "train"


def class_in_one_split(root: Path) -> str:
    save(root / "test" / "blue" / "1.png", Image.new("RGB", (8, 8)))
    return "blue"


def empty_class(root: Path) -> str:
    (root / "train" / "red" / "1.png").unlink()
    return "red"


def no_class(root: Path) -> Path:
    for path in [*root.glob("test/*/*.png")]:
        path.unlink()
        path.parent.rmdir()
    return root / "test"


def single_class(root: Path) -> str:
    for split in ("train", "test"):
        (root / split / "red" / "1.png").unlink()
        (root / split / "red").rmdir()
    return "single class grey"


def link_to_nowhere(root: Path) -> Path:
    path = root / "train" / "red" / "2.png"
    path.symlink_to("nowhere.png")
    return path


def loop(root: Path) -> Path:
    path = root / "train" / "red" / "all"
    for link in (path, path.with_name("all, too")):  # with two of them the ways double at each step
        link.symlink_to(path.parent, target_is_directory=True)
    return path


def other_class(root: Path) -> Path:
    path = root / "train" / "red" / "more"
    path.symlink_to(root / "train" / "grey", target_is_directory=True)
    return path


def training_images_as_test(root: Path) -> Path:
    path = root / "test" / "red"
    (path / "1.png").unlink()
    path.rmdir()
    path.symlink_to(root / "train" / "red", target_is_directory=True)
    return path


def damaged(name: str, content: bytes):
    def damage(root: Path) -> Path:
        path = root / "train" / "red" / name
        path.write_bytes(content)
        return path

    return damage


def encoded(image_format: str, **arguments) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)).save(
        file, image_format, **arguments
    )
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        no_train_folder,
        class_in_one_split,
        empty_class,
        no_class,
        single_class,
        link_to_nowhere,
        loop,
        other_class,
        training_images_as_test,
        damaged("text.jpg", b"no picture"),
        damaged("empty.png", b""),
        damaged("half.png", encoded("PNG")[:1000]),
        damaged("half.jpg", encoded("JPEG")[:1000]),
        damaged("header.ppm", b"P6 4x 4 255\n" + bytes(48)),
        damaged("half.ppm", b"P6 4 4 255\n" + bytes(20)),
    ],
    ids=[
        "no train",
        "one split",
        "empty class",
        "no class",
        "single class",
        "link",
        "loop",
        "other class",
        "training images as test",
        "text",
        "empty",
        "png",
        "jpg",
        "ppm header",
        "ppm",
    ],
)
def test_an_error_in_an_image_folder_is_one_line_that_names_the_place(image_folder, damage):
    named = damage(image_folder)
    with pytest.raises(RunError) as caught:
        read_image_folder(image_folder, 8, cache=True)
    assert str(named) in str(caught.value)
    assert str(image_folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [*image_folder.glob(".*")]  # nothing was cached


def test_a_picture_with_invalid_exif_is_read_or_refused(tmp_path):
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    resolution_unit = struct.pack("<HHI4s", 0x0128, 2, 2, b"x")  # text in place of a number
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + orientation + resolution_unit + bytes(4)
    path = tmp_path / "exif.jpg"
    path.write_bytes(encoded("JPEG", exif=exif))
    with contextlib.suppress(RunError):
        assert read_image(path, 8).shape == (3, 8, 8)


def test_the_classes_are_the_folders_with_what_their_subfolders_hold(image_folder):
    for split in ("train", "test"):
        save(image_folder / split / "blue" / "deeper" / "1.JPG", Image.new("RGB", (8, 8), (0, 0, 255)))
    dataset = load_dataset("image-folder", str(image_folder), img_size=8)
    assert dataset.class_names == ["blue", "grey", "red"]
    assert dataset.train_labels.tolist() == dataset.test_labels.tolist() == [0, 1, 2]
    assert dataset.mirrorable


def test_hidden_folders_and_files_are_ignored(image_folder):
    expected = load_dataset("image-folder", str(image_folder), img_size=8, cache=False)
    checkpoints = ".ipynb_checkpoints"
    hidden = [f"{checkpoints}/x.jpg", f"red/{checkpoints}/x.jpg", f"red/{checkpoints}/more/x.jpg", "red/.x.jpg"]
    for path in hidden:
        save(image_folder / "train" / path, Image.new("RGB", (8, 8)))
    found = load_dataset("image-folder", str(image_folder), img_size=8)
    assert found.class_names == ["grey", "red"]
    assert found.train_images.tolist() == expected.train_images.tolist()


def test_a_dataset_may_lie_in_a_hidden_folder(image_folder):
    root = image_folder / ".cache" / "pictures"
    for split in ("train", "test"):
        root.mkdir(parents=True, exist_ok=True)
        (image_folder / split).rename(root / split)
    assert load_dataset("image-folder", str(root), img_size=8).train_labels.tolist() == [0, 1]


def test_pictures_come_in_torchvisions_order(image_folder):
    """The order decides which random numbers an image gets."""
    for name in ("b.png", "B.png", "a/1.png", "a-b/1.png", "a/b/2.png", "a/10.png", "é.png", "c.JPG"):
        save(image_folder / "train" / "red" / name, Image.new("RGB", (8, 8)))
    samples, class_names, _ = find_samples(image_folder)
    expected = datasets.ImageFolder(image_folder / "train")
    assert samples["train"] == expected.samples
    assert class_names == expected.classes


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_picture_of_each_extension_is_read(image_folder, extension):
    if extension == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    (image_folder / "train" / "red" / "1.png").unlink()
    save(image_folder / "train" / "red" / f"1{extension.upper()}", Image.new("RGB", (16, 16), (200, 99, 50)))
    image = read_image_folder(image_folder, 8, cache=False)["train_images"][1]
    np.testing.assert_allclose(image.float().mean(dim=(1, 2)), (200, 99, 50), atol=6)


def test_a_folder_that_cannot_be_read_is_named_and_not_left_out(image_folder, monkeypatch):
    closed, scandir = image_folder / "train" / "red" / "closed", os.scandir
    closed.mkdir()

    def refuse(path: Any = ".") -> Any:
        if os.fspath(path) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(closed))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(RunError, match=f"can't read the folder {closed}: Permission denied"):
        read_image_folder(image_folder, 8, cache=False)


def test_a_folder_without_pictures_may_be_linked(image_folder):
    notes = image_folder / "notes"
    notes.mkdir()
    (notes / "readme.txt").write_text("no picture")
    for split in ("train", "test"):
        (image_folder / split / "red" / "notes").symlink_to(notes, target_is_directory=True)
    assert len(read_image_folder(image_folder, 8, cache=False)["train_images"]) == 2


@pytest.mark.parametrize("extension", [".pdf", ".h5", ".eps", ".mpg", ".mpeg", ".wmf", ".psd", ".fits", ".txt", ""])
def test_a_file_that_is_no_picture_by_its_name_is_ignored(image_folder, extension):
    (image_folder / "train" / "red" / f"notes{extension}").write_text("no picture")
    assert len(read_image_folder(image_folder, 8, cache=False)["train_images"]) == 2


def test_what_is_left_out_is_said_once(image_folder, capsys):
    for name in ("1.HEIC", "2.heic", "deeper/3.heic", "notes.txt", "README", ".DS_Store", ".hidden/4.heic"):
        path = image_folder / "train" / "red" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no picture")
    read_image_folder(image_folder, 8, cache=True)
    said = capsys.readouterr().out
    assert all(part in said for part in ("left out: 3 .heic, 1 ", "1 .txt", "1 without an extension"))
    read_image_folder(image_folder, 8, cache=True)
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 only")
def test_a_name_that_is_not_utf_8_is_read_and_that_of_a_class_is_refused(image_folder):
    red = image_folder / "train" / "red"
    (red / "1.png").rename(red / os.fsdecode(b"caf\xe9.png"))
    assert len(read_image_folder(image_folder, 8, cache=True)["train_images"]) == 2
    for split in ("train", "test"):
        (image_folder / split / "red").rename(image_folder / split / os.fsdecode(b"r\xe9d"))
    with pytest.raises(RunError, match="not UTF-8"):
        read_image_folder(image_folder, 8, cache=True)


def test_a_picture_of_unknown_range_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 200, dtype=np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(RunError, match=r"deep\.tif.* 32 bits"):
        read_image(tmp_path / "deep.tif", 4)
