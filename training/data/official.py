"""Datasets that torchvision knows: CIFAR, SVHN, Fashion-MNIST. Downloaded from their official address, md5 checked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5, extract_archive

from training.data.download import download, one_process
from training.errors import RunError, first_line, is_out_of_memory

ARCHIVES = (".gz", ".tgz")


def read_cifar(source: type[datasets.CIFAR10], root: Path, data_url: str) -> dict[str, Any]:
    """CIFAR-10 or CIFAR-100, as the arguments of a Dataset: 50,000 training and 10,000 test images of 32x32."""

    def read() -> dict[str, Any]:
        train, test = (source(root, train=train) for train in (True, False))
        images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
        return {
            "class_names": train.classes,
            "train_images": images[0], "train_labels": torch.tensor(train.targets),
            "test_images": images[1], "test_labels": torch.tensor(test.targets),
        }  # fmt: skip

    return provide(source.__name__.lower(), read, root, {source.filename: source.tgz_md5}, data_url or source.url)


def read_svhn(root: Path, data_url: str) -> dict[str, Any]:
    """SVHN (Netzer et al., 2011): 73,257 and 26,032 house-number digits of 32x32, which are never mirrored."""

    def read() -> dict[str, Any]:
        train, test = (datasets.SVHN(root, split=split) for split in ("train", "test"))
        images = [torch.from_numpy(np.ascontiguousarray(part.data)) for part in (train, test)]
        return {
            "class_names": [str(digit) for digit in range(10)],
            "train_images": images[0], "train_labels": torch.from_numpy(train.labels),
            "test_images": images[1], "test_labels": torch.from_numpy(test.labels), "mirrorable": False,
        }  # fmt: skip

    files = [datasets.SVHN.split_list[split] for split in ("train", "test")]
    url = files[0][0].rpartition("/")[0]
    return provide("svhn", read, root, {name: md5 for _, name, md5 in files}, data_url or url)


def read_fashion_mnist(root: Path, data_url: str) -> dict[str, Any]:
    """Fashion-MNIST (arXiv 1708.07747): 60,000 and 10,000 grey pictures of clothes, 28x28, repeated to RGB."""

    def read() -> dict[str, Any]:
        train, test = (datasets.FashionMNIST(root, train=train) for train in (True, False))
        images = [part.data.unsqueeze(1).repeat(1, 3, 1, 1) for part in (train, test)]
        return {
            "class_names": train.classes,
            "train_images": images[0], "train_labels": train.targets.long(),
            "test_images": images[1], "test_labels": test.targets.long(),
        }  # fmt: skip

    source = datasets.FashionMNIST
    return provide(
        "fashion-mnist", read, root / source.__name__ / "raw", dict(source.resources), data_url or source.mirrors[0]
    )


def provide(
    name: str, read: Callable[[], dict[str, Any]], folder: Path, files: dict[str, str], url: str
) -> dict[str, Any]:
    """What `read` returns, once the official `files` (name: md5) are in `folder`: they are downloaded if missing.

    RunError for what can't be had or read.
    """
    try:
        with suppress_damage():  # not there, not unpacked yet, or only half, which may raise anything
            return read()
        with one_process(folder, name):
            with suppress_damage():  # another process may have been at it
                return read()
            for file, md5 in files.items():
                provide_file(folder / file, url, md5)
                if file.endswith(ARCHIVES):
                    extract_archive(str(folder / file), str(folder))  # from Python 3.11.4 on none outside it
            return read()
    except RunError as error:
        raise RunError(
            f"could not get {name}: {error}. Ways out: a mirror with --data-url, {' and '.join(files)} put into "
            f"{folder} by hand, or --dataset digits (--preset demo) or image-folder, which need no download"
        ) from None
    except Exception as error:  # a file of other content can raise anything
        if is_out_of_memory(error):
            raise
        raise RunError(f"can't read {name} from {folder}: {first_line(error)}") from None


@contextmanager
def suppress_damage() -> Iterator[None]:
    """Suppress any exception but that of a memory that is used up."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise


def provide_file(path: Path, url: str, md5: str) -> None:
    """Check the file at `path`, or download it; `url` is the address of the file or of the folder it is in."""
    if path.exists():
        if (found := calculate_md5(path)) != md5:
            raise RunError(
                f"{path} has md5 {found}, the official file has {md5}: remove it, or replace it with a good one"
            )
        return
    is_file = any(end in url for end in (".tar.gz", ".tgz"))
    download(url if is_file else f"{url.rstrip('/')}/{path.name}", path, md5)
