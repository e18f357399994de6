"""Datasets arrive whole, in the right layout and split; loaders show each image once and repeat themselves."""

import contextlib
import hashlib
import io
import pickle
import socket
import struct
import tarfile
import threading
import zlib
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets

from training import data
from training.augment import Augmentation, Draws
from training.data import Dataset, ImageLoader, channel_stats, get_cifar10_dataloaders, load_dataset, normalize
from training.errors import RunError, UsageError

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
ALL_AUGMENTATION = Augmentation(crop_padding=1, horizontal_flip=True, auto_augment=True)


def random_images(num_images: int, size: int = 8) -> Tensor:
    return torch.randint(256, (num_images, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()


def as_set(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def pil_resized(image: Tensor, size: int) -> np.ndarray:
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    return np.array(pixels.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


# --- digits ---


def test_digits_are_scikit_learns_images_in_a_stratified_split_that_never_moves():
    dataset = load_dataset("digits", "", img_size=8)
    assert (len(dataset.train_images), len(dataset.test_images)) == (1437, 360)
    pixels, labels = load_digits(return_X_y=True)
    greys = np.rint(pixels.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    expected = sorted((image.repeat(3, 0).tobytes(), label) for image, label in zip(greys, labels, strict=True))
    images = torch.cat([dataset.train_images, dataset.test_images])
    found = torch.cat([dataset.train_labels, dataset.test_labels]).tolist()
    assert sorted((image.numpy().tobytes(), label) for image, label in zip(images, found, strict=True)) == expected
    share = np.bincount(labels) * 360 / 1797
    assert np.abs(np.bincount(dataset.test_labels) - share).max() < 1
    assert zlib.crc32(dataset.test_images.numpy().tobytes()) == 576879485
    assert dataset.test_labels[:10].tolist() == [3, 1, 5, 4, 6, 9, 7, 0, 2, 8]


def test_resized_digits_are_what_pillow_makes_of_them():
    small, large = (load_dataset("digits", "", img_size=size).test_images[:50] for size in (8, 32))
    expected = np.stack([pil_resized(image, 32) for image in small])
    np.testing.assert_allclose(large.numpy(), expected, atol=1)


@pytest.mark.parametrize("mirrorable", [False, True])
def test_digits_are_never_mirrored_and_what_may_be_is_every_other_time(mirrorable):
    digits = load_dataset("digits", "", img_size=8)
    if mirrorable:
        digits = replace(digits, mirrorable=True)
    loader, _ = get_cifar10_dataloaders(digits, auto_augment=False, crop_padding=0, horizontal_flip=True)
    mean, std = (torch.tensor(loader.stats[name]).view(3, 1, 1) for name in ("mean", "std"))
    pixels = torch.cat([((images * std + mean) * 255).round().byte() for images, _ in loader])
    originals = as_set(digits.train_images)
    unchanged = sum(image.numpy().tobytes() in originals for image in pixels)
    if mirrorable:
        assert 600 < unchanged < 850
    else:
        assert unchanged == 1437


# --- CIFAR, from small archives in the official format ---


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def closed_url():
    """An address where nobody listens: the port is taken, so that nobody else will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/archive.tar.gz"


@pytest.fixture
def cifar(request, monkeypatch, tmp_path, closed_url):
    """A name, a folder with its archive of 20 training and 6 test images, and their official rows and labels."""
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[request.param]
    coarse = {"coarse_labels": [0] * 20} if request.param == "cifar100" else {}
    label_key = "fine_labels" if coarse else "labels"
    names = [f"class {number}" for number in range(100 if coarse else 10)]
    rng, md5s, rows, labels = np.random.default_rng(0), {}, [], []
    archive = tmp_path / source.filename
    with tarfile.open(archive, "w:gz") as tar:

        def add(name: str, content: dict) -> None:
            pickled = pickle.dumps(content, protocol=2)
            md5s[name] = hashlib.md5(pickled).hexdigest()
            member = tarfile.TarInfo(f"{source.base_folder}/{name}")
            member.size = len(pickled)
            tar.addfile(member, io.BytesIO(pickled))

        for parts in (source.train_list, source.test_list):
            for name, _ in parts:
                n = 20 // len(parts) if parts is source.train_list else 6
                rows.append(rng.integers(256, size=(n, 3 * 32 * 32), dtype=np.uint8))
                labels += (batch_labels := rng.integers(len(names), size=n).tolist())
                add(name, {"data": rows[-1], label_key: batch_labels, **coarse})
        add(source.meta["filename"], {source.meta["key"]: names})
    monkeypatch.setattr(source, "url", closed_url)
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(source, attribute, [[name, md5s[name]] for name, _ in getattr(source, attribute)])
    monkeypatch.setattr(source, "meta", source.meta | {"md5": md5s[source.meta["filename"]]})
    return request.param, tmp_path, names, np.concatenate(rows), labels


both_cifars = pytest.mark.parametrize("cifar", ["cifar10", "cifar100"], indirect=True)
cifar10_only = pytest.mark.parametrize("cifar", ["cifar10"], indirect=True)


@both_cifars
def test_an_archive_put_there_by_hand_is_read_as_red_green_and_blue_planes(cifar):
    name, folder, names, rows, labels = cifar
    dataset = load_dataset(name, str(folder), img_size=32)
    images = torch.cat([dataset.train_images, dataset.test_images])
    assert images.dtype == torch.uint8
    # "The first 1024 entries contain the red channel values, the next 1024 the green, and the final 1024 the blue",
    # in row-major order (https://www.cs.toronto.edu/~kriz/cifar.html)
    for image, row in zip(images.numpy(), rows, strict=True):
        for channel in range(3):
            for y in (0, 1, 31):
                start = 1024 * channel + 32 * y
                assert image[channel, y].tolist() == row[start : start + 32].tolist()
    assert (dataset.train_labels.tolist(), dataset.test_labels.tolist()) == (labels[:20], labels[20:])
    assert dataset.class_names == names
    assert load_dataset(name, str(folder), img_size=16).train_images.shape == (20, 3, 16, 16)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@cifar10_only
def test_an_archive_comes_from_a_mirror(cifar):
    name, folder, *_ = cifar
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mirror = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
        dataset = load_dataset(name, str(folder / "empty"), 32, mirror)
        server.shutdown()
    assert len(dataset.train_images) == 20


@cifar10_only
def test_the_loaders_read_cifar10_by_themselves(cifar):
    train_loader, test_loader = get_cifar10_dataloaders(data_dir=str(cifar[1]), batch_size=8)
    assert (len(train_loader.images), len(test_loader.images)) == (20, 6)


@both_cifars
def test_a_damaged_archive_without_a_network_is_one_line_that_names_the_ways_out(cifar):
    name, folder, *_ = cifar
    archive = next(folder.glob("*.tar.gz"))
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(RunError) as caught:
        load_dataset(name, str(folder), img_size=32)
    for way in (name, archive.name, str(folder), "--data-url", "--dataset digits", "image-folder"):
        assert way in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    "url",
    ["no-url", "http://no host/", "http://127.0.0.1:port/", Path(__file__).as_uri()],
    ids=["no url", "no host", "no port", "file"],
)
def test_a_mirror_that_is_none_is_an_error_that_names_the_flag(tmp_path, url):
    with pytest.raises(RunError, match="--data-url"):
        load_dataset("cifar10", str(tmp_path), 32, data_url=url)


# --- image folders ---


def save(path: Path, image: Image.Image, **arguments) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **arguments)
    return path


@pytest.fixture
def image_folder(tmp_path):
    """Two classes, red and grey, one picture each in train and test."""
    for split in ("train", "test"):
        save(tmp_path / split / "red" / "1.png", Image.new("RGB", (8, 8), (255, 0, 0)))
        save(tmp_path / split / "grey" / "1.png", Image.new("RGB", (8, 8), (99, 99, 99)))
    return tmp_path


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
        ("cmyk.tif", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0)),
        ("16_bit.png", deep_image(0x4040), (64, 64, 64)),
        ("16_bit.tif", deep_image(0xC0C0), (192, 192, 192)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.mode if isinstance(value, Image.Image) else "",
)
def test_pictures_of_any_mode_become_rgb(image_folder, name, image, expected):
    save(image_folder / "train" / "grey" / name, image)
    dataset = load_dataset("image-folder", str(image_folder), img_size=8)
    assert dataset.class_names == ["grey", "red"]
    assert dataset.test_labels.tolist() == [0, 1]
    assert dataset.test_images[1].float().mean(dim=(1, 2)).tolist() == [255, 0, 0]
    np.testing.assert_allclose(
        dataset.train_images[1], np.broadcast_to(np.reshape(expected, (3, 1, 1)), (3, 8, 8)), atol=1
    )


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16, 0] = 255  # the left half is red
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image = data.read_image(save(tmp_path / "turned.png", Image.fromarray(pixels), exif=exif), 8)
    assert image[0, :3].min() == 255  # the top half is
    assert image[0, 5:].max() == 0


def test_pictures_of_other_sizes_are_resized_as_pillow_does_it(tmp_path):
    for width, height in ((8, 8), (20, 13), (3, 50)):
        pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
        image = data.read_image(save(tmp_path / "picture.png", Image.fromarray(pixels)), 8)
        np.testing.assert_allclose(image, pil_resized(torch.from_numpy(pixels).permute(2, 0, 1), 8), atol=1)


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
        damaged("text.jpg", b"no picture"),
        damaged("empty.png", b""),
        damaged("half.png", encoded("PNG")[:1000]),
        damaged("half.jpg", encoded("JPEG")[:1000]),
        damaged("header.ppm", b"P6 4x 4 255\n" + bytes(48)),
        damaged("half.ppm", b"P6 4 4 255\n" + bytes(20)),
    ],
    ids=["no train", "one split", "empty class", "no class", "text", "empty", "png", "jpg", "ppm header", "ppm"],
)
def test_what_is_wrong_with_an_image_folder_is_one_line_that_names_it(image_folder, damage):
    named = damage(image_folder)
    with pytest.raises(RunError) as caught:
        load_dataset("image-folder", str(image_folder), img_size=8)
    assert str(named) in str(caught.value)
    assert str(image_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_picture_with_nonsense_in_its_exif_is_read_or_refused(tmp_path):
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    resolution_unit = struct.pack("<HHI4s", 0x0128, 2, 2, b"x")  # a text, where a number belongs
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + orientation + resolution_unit + bytes(4)
    path = tmp_path / "exif.jpg"
    path.write_bytes(encoded("JPEG", exif=exif))
    with contextlib.suppress(RunError):
        assert data.read_image(path, 8).shape == (3, 8, 8)


# --- normalization ---


def test_channel_stats_are_numpys(monkeypatch):
    monkeypatch.setattr(data, "CHUNK_SIZE", 7)
    images = random_images(30)
    images[:, 1] //= 3
    mean, std = channel_stats(images)
    pixels = images.numpy().astype(np.float64) / 255
    assert mean == pytest.approx(pixels.mean(axis=(0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(pixels.std(axis=(0, 2, 3)).tolist(), rel=1e-12)


def test_a_constant_channel_normalizes_to_zero():
    images = torch.full((4, 3, 8, 8), 77, dtype=torch.uint8)
    assert normalize(images, *channel_stats(images)).abs().max() < 1e-4


def test_normalize_shifts_and_scales_each_channel_and_leaves_its_input():
    images = random_images(4)
    before = images.clone()
    expected = (images.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(normalize(images, MEAN, STD), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(images, before)


# --- loaders ---


def numbered_loader(batch_size: int = 32, num_images: int = 150, **arguments) -> ImageLoader:
    """Random images, each labelled with its number."""
    arguments = {"shuffle_seed": 42, "augmentation": ALL_AUGMENTATION, "split": "train"} | arguments
    return ImageLoader(random_images(num_images), torch.arange(num_images), MEAN, STD, batch_size, **arguments)


def epoch_of(loader: ImageLoader, epoch: int = 0) -> tuple[Tensor, Tensor]:
    loader.set_epoch(epoch)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(data, "CHUNK_SIZE", 64)


@pytest.mark.parametrize(("batch_size", "sizes"), [(32, [32, 32, 32, 32, 22]), (50, [50] * 3), (400, [150])])
def test_an_epoch_has_every_image_once_and_keeps_the_smaller_last_batch(small_chunks, batch_size, sizes):
    loader = numbered_loader(batch_size)
    assert [len(labels) for _, labels in loader] == sizes
    assert len(loader) == len(sizes)
    assert sorted(epoch_of(loader)[1].tolist()) == list(range(150))


def test_labels_stay_with_their_images(small_chunks):
    images, labels = epoch_of(numbered_loader(augmentation=None))
    assert torch.equal(images, normalize(random_images(150)[labels], MEAN, STD))


def test_an_images_augmentation_follows_its_number_not_its_place(small_chunks):
    images, labels = epoch_of(numbered_loader(), epoch=5)
    augmented = ALL_AUGMENTATION(random_images(150), Draws.of_epoch(42, 5, 150))
    assert torch.equal(images, normalize(augmented[labels], MEAN, STD))


def test_order_and_pixels_are_a_function_of_seed_and_epoch():
    images, labels = epoch_of(numbered_loader(), epoch=5)
    again, same_labels = epoch_of(numbered_loader(), epoch=5)
    assert torch.equal(images, again)
    assert torch.equal(labels, same_labels)
    for other in (epoch_of(numbered_loader(), epoch=6), epoch_of(numbered_loader(shuffle_seed=43), epoch=5)):
        assert not torch.equal(other[1], labels)
        assert not torch.equal(other[0][other[1].argsort()], images[labels.argsort()])  # the augmentation differs too


def test_an_epochs_order_is_pinned():
    """A change that moves it changes every result of the repository: it should be meant."""
    images = torch.zeros(50_000, 3, 1, 1, dtype=torch.uint8)
    loader = ImageLoader(images, torch.arange(50_000), MEAN, STD, 5, shuffle_seed=42, split="train")
    loader.set_epoch(3)
    assert next(iter(loader))[1].tolist() == [14736, 18029, 31053, 14295, 35830]


@pytest.mark.parametrize("change", [{"num_workers": 1}, {"num_workers": 2}, {"batch_size": 64}, {"batch_size": 50}])
def test_workers_and_batch_size_change_no_pixel(small_chunks, change):
    images, labels = epoch_of(numbered_loader(), epoch=1)
    others, other_labels = epoch_of(numbered_loader(**change), epoch=1)
    assert torch.equal(labels, other_labels)
    assert torch.equal(images, others)


def test_without_a_seed_images_come_in_their_own_order():
    images, labels = epoch_of(numbered_loader(shuffle_seed=None, augmentation=None))
    assert labels.tolist() == list(range(150))
    assert torch.equal(images, normalize(random_images(150), MEAN, STD))


# --- splits ---


def ten_classes(num_train: int = 300, num_test: int = 40) -> Dataset:
    images, labels = random_images(num_train + num_test), torch.arange(num_train + num_test) % 10
    names = [str(label) for label in range(10)]
    return Dataset(names, images[:num_train], labels[:num_train], images[num_train:], labels[num_train:])


def test_by_default_all_training_images_and_the_test_split():
    dataset = ten_classes()
    train_loader, eval_loader = get_cifar10_dataloaders(dataset, crop_padding=1)
    assert torch.equal(train_loader.images, dataset.train_images)
    assert torch.equal(train_loader.labels, dataset.train_labels)
    assert (train_loader.split, eval_loader.split) == ("train", "test")
    images, labels = epoch_of(eval_loader)
    assert torch.equal(images, normalize(dataset.test_images, **train_loader.stats))
    assert torch.equal(labels, dataset.test_labels)


def test_the_validation_split_is_stratified_apart_from_training_and_never_augmented():
    dataset = ten_classes()
    train_loader, val_loader = get_cifar10_dataloaders(dataset, crop_padding=1, val_size=50)
    assert val_loader.split == "val"
    assert val_loader.labels.bincount().tolist() == [5] * 10
    assert train_loader.labels.bincount().tolist() == [25] * 10
    train, val = as_set(train_loader.images), as_set(val_loader.images)
    assert not train & val
    assert train | val == as_set(dataset.train_images)
    number = {image.numpy().tobytes(): label for image, label in zip(dataset.train_images, range(300), strict=True)}
    for loader in (train_loader, val_loader):
        of = [number[image.numpy().tobytes()] for image in loader.images]
        assert torch.equal(dataset.train_labels[of], loader.labels)
    for epoch in (0, 1):
        images, labels = epoch_of(val_loader, epoch)
        assert torch.equal(images, normalize(val_loader.images, **train_loader.stats))
        assert torch.equal(labels, val_loader.labels)


def test_fewer_training_images_keep_the_classes_shares_and_the_validation_split():
    dataset = ten_classes()
    _, val_of_all = get_cifar10_dataloaders(dataset, val_size=50)
    train_loader, val_loader = get_cifar10_dataloaders(dataset, val_size=50, max_train_images=100)
    assert train_loader.labels.bincount().tolist() == [10] * 10
    assert torch.equal(val_loader.images, val_of_all.images)
    assert not as_set(train_loader.images) & as_set(val_loader.images)
    mean, std = channel_stats(dataset.train_images)
    assert train_loader.stats == {"mean": mean, "std": std}  # measured on all of them


def test_unequal_classes_keep_their_shares():
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    dataset = Dataset(["a", "b", "c"], random_images(1000), labels, random_images(3), torch.arange(3))
    train_loader, val_loader = get_cifar10_dataloaders(dataset, val_size=100, max_train_images=200)
    np.testing.assert_allclose(val_loader.labels.bincount(), [60, 30, 10], atol=1)
    np.testing.assert_allclose(train_loader.labels.bincount(), [120, 60, 20], atol=2)


def test_the_split_is_a_function_of_the_seed():
    splits = [get_cifar10_dataloaders(ten_classes(), val_size=50, seed=seed)[1].images for seed in (1, 1, 2)]
    assert torch.equal(splits[0], splits[1])
    assert as_set(splits[0]) != as_set(splits[2])


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"val_size": 9}, "val_size"),  # not one of each class
        ({"val_size": 291}, "val_size"),  # or not one left
        ({"val_size": 301}, "val_size"),
        ({"max_train_images": 301}, "max_train_images"),
        ({"max_train_images": 251, "val_size": 50}, "max_train_images"),
    ],
)
def test_sizes_that_the_data_does_not_have_are_refused_by_name(sizes, named):
    with pytest.raises(UsageError, match=named):
        get_cifar10_dataloaders(ten_classes(), **sizes)


@pytest.mark.parametrize("sizes", [{"val_size": 10}, {"val_size": 290}, {"max_train_images": 250, "val_size": 50}])
def test_the_largest_and_smallest_sizes_that_fit_are_taken(sizes):
    train_loader, val_loader = get_cifar10_dataloaders(ten_classes(), **sizes)
    assert len(val_loader.images) == sizes["val_size"]
    assert set(val_loader.labels.tolist()) == set(train_loader.labels.tolist()) == set(range(10))
