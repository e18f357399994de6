"""SVHN and Fashion-MNIST, read from small files in their official formats. CIFAR is tested in test_datasets.py."""

import functools
import gzip
import hashlib
import struct
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from filelock import FileLock
from processes import wait_until
from torchvision import datasets

from training.data import get_cifar10_dataloaders, load_dataset, official
from training.errors import RunError

RNG = np.random.default_rng(0)
GREY = RNG.integers(256, size=(24, 28, 28), dtype=np.uint8)  # 20 training images and 4 test images
COLOURED = RNG.integers(256, size=(24, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(24) % 10


@pytest.fixture
def fashion(monkeypatch, tmp_path, closed_url) -> Path:
    """A folder with Fashion-MNIST's four files, in the format that Yann LeCun's page describes for MNIST."""
    folder, resources = tmp_path / "fashion", []
    folder.mkdir()
    for name, part in (("train", slice(20)), ("t10k", slice(20, 24))):
        images, labels = GREY[part], LABELS[part].astype(np.uint8)
        contents = {
            "images-idx3": struct.pack(">iiii", 0x803, len(images), 28, 28) + images.tobytes(),
            "labels-idx1": struct.pack(">ii", 0x801, len(labels)) + labels.tobytes(),
        }
        for kind, content in contents.items():
            path = folder / f"{name}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(content))
            resources.append((path.name, hashlib.md5(path.read_bytes()).hexdigest()))
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [closed_url])
    return folder


@pytest.fixture
def svhn(monkeypatch, tmp_path, closed_url) -> Path:
    """A folder with SVHN's two files: X is (32, 32, 3, n), and the digit 0 has the label 10."""
    folder, splits = tmp_path / "svhn", {}
    folder.mkdir()
    for name, part in (("train", slice(20)), ("test", slice(20, 24))):
        path = folder / f"{name}_32x32.mat"
        labels = np.where(LABELS[part] == 0, 10, LABELS[part]).astype(np.uint8)
        scipy.io.savemat(path, {"X": COLOURED[part].transpose(1, 2, 3, 0), "y": labels[:, None]})
        splits[name] = [f"{closed_url}/{path.name}", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    return folder


@pytest.fixture
def serve() -> Iterator:
    """Serve a folder; gives its address."""
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
            pass

    def start(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()


def test_fashion_mnist_is_downloaded_from_a_mirror_and_read_as_grey_rgb(fashion, serve, tmp_path):
    root = tmp_path / "data"
    dataset = load_dataset("fashion-mnist", str(root), 28, serve(fashion))
    assert dataset.class_names[0] == "T-shirt/top"
    assert (len(dataset.class_names), dataset.mirrorable) == (10, True)
    for images, labels, part in (
        (dataset.train_images, dataset.train_labels, slice(20)),
        (dataset.test_images, dataset.test_labels, slice(20, 24)),
    ):
        assert np.array_equal(images.numpy(), np.repeat(GREY[part][:, None], 3, axis=1))
        assert labels.tolist() == LABELS[part].tolist()
    again = load_dataset("fashion-mnist", str(root), 32)  # nobody listens at the official address
    assert again.train_images.shape == (20, 3, 32, 32)


def test_svhn_is_downloaded_from_a_mirror_and_its_ten_is_a_zero(svhn, serve, tmp_path):
    root = tmp_path / "data"
    dataset = load_dataset("svhn", str(root), 32, serve(svhn))
    assert dataset.class_names == [str(digit) for digit in range(10)]
    assert np.array_equal(dataset.train_images.numpy(), COLOURED[:20].transpose(0, 3, 1, 2))
    assert np.array_equal(dataset.test_images.numpy(), COLOURED[20:].transpose(0, 3, 1, 2))
    assert dataset.train_labels.tolist() + dataset.test_labels.tolist() == LABELS.tolist()
    augmentation = get_cifar10_dataloaders(dataset)[0].augmentation
    assert augmentation
    assert not augmentation.horizontal_flip
    assert len(load_dataset("svhn", str(root), 32).train_images) == 20


def test_it_waits_for_a_process_that_downloads_or_unpacks_and_not_for_one_that_was_killed(fashion, tmp_path, capsys):
    root, unpacked = tmp_path / "data", tmp_path / "data" / "FashionMNIST" / "raw"
    unpacked.mkdir(parents=True)
    sizes: list[int] = []
    waiting = threading.Thread(
        target=lambda: sizes.append(len(load_dataset("fashion-mnist", str(root), 28).test_images))
    )
    with FileLock(unpacked / ".fashion-mnist.lock", thread_local=False):  # of the process that unpacks
        for file in fashion.iterdir():
            (unpacked / file.stem).write_bytes(b"half")
        waiting.start()
        wait_until(lambda: "Waiting for another process that downloads or unpacks" in capsys.readouterr().out)
        for file in fashion.iterdir():
            (unpacked / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    waiting.join()
    assert sizes == [4]  # nobody listens at the official address
    (unpacked / "train-images-idx3-ubyte").unlink()
    (unpacked / ".fashion-mnist.lock").touch()  # nobody holds it
    for file in fashion.iterdir():
        (unpacked / file.name).write_bytes(file.read_bytes())
    assert len(load_dataset("fashion-mnist", str(root), 28).test_images) == 4
    assert not (unpacked / ".fashion-mnist.lock").exists()


@pytest.mark.parametrize(
    ("name", "file"), [("fashion-mnist", "train-images-idx3-ubyte.gz"), ("svhn", "train_32x32.mat")]
)
def test_what_cannot_be_had_is_one_line_with_the_ways_out(name, file, fashion, svhn, tmp_path):
    with pytest.raises(RunError, match=f"^could not get {name}: .*--data-url, {file} and .*put into") as error:
        load_dataset(name, str(tmp_path / "data"), 32)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_named_and_one_that_was_unpacked_badly_is_unpacked_anew(fashion, svhn, tmp_path, monkeypatch):
    path = svhn / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"test_32x32\.mat has md5 .*remove it"):
        load_dataset("svhn", str(svhn), 32)
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in fashion.iterdir():
        (raw / file.name).write_bytes(file.read_bytes())
    load_dataset("fashion-mnist", str(tmp_path / "data"), 28)
    for name, content in (("train-images-idx3-ubyte", b"half"), ("t10k-labels-idx1-ubyte", b"")):  # by a kill
        (raw / name).write_bytes(content)
    repaired = load_dataset("fashion-mnist", str(tmp_path / "data"), 28)
    assert np.array_equal(repaired.train_images[:, 0].numpy(), GREY[:20])
    assert repaired.test_labels.tolist() == LABELS[20:].tolist()
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other content"))
    official = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in raw.glob("*.gz")]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", official)
    with pytest.raises(RunError, match=r"^can't read fashion-mnist from "):
        load_dataset("fashion-mnist", str(tmp_path / "data"), 28)


def test_a_memory_that_is_full_is_not_taken_for_damage(tmp_path):
    """Else the archive would be unpacked again, or downloaded."""

    def read(*args, **options):
        raise MemoryError

    with pytest.raises(MemoryError):
        official.provide("cifar10", read, tmp_path, {"y": ""}, "http://127.0.0.1:9")
    assert not list(tmp_path.iterdir())
