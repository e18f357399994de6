"""Pictures of any size and mode, read in parallel, and kept as one file of uint8 tensors beside them."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import datasets
from tqdm import tqdm

from training.errors import RunError
from training.files import read_sealed, write_sealed

CACHE_VERSION = 1  # raise it when pictures are read in another way


def read_image_folder(root: Path, img_size: int, cache: bool) -> dict[str, Any]:
    """DIR/train/<class>/* and DIR/test/<class>/* as RGB of img_size x img_size pixels.

    Returns class_names, and train_images (n, 3, img_size, img_size), train_labels (n,), test_images and test_labels.
    With `cache` they are read from one file in the folder, and made anew where a picture has come, gone or changed.
    RunError, with the path, for what is missing or can't be decoded.
    """
    samples, names = find_samples(root)
    cache_file = root / f".images-{img_size}.pt"
    key = fingerprint(root, samples)
    if cache and (cached := read_cache(cache_file, key)) is not None:
        return cached
    content: dict[str, Any] = {"fingerprint": key, "class_names": names}
    for split, pairs in samples.items():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(lambda pair: read_image(pair[0], img_size), pairs)
            bar = tqdm(decoded, f"reading {split} images", len(pairs), disable=None, leave=False)
            content[f"{split}_images"] = torch.stack(list(bar))
        content[f"{split}_labels"] = torch.tensor([label for _, label in pairs])
    if cache:
        try:
            write_sealed(cache_file, content)
        except RunError as error:  # a folder of somebody else's, or a full disk: it works without
            print(f"note: the images are not cached: {error}")
    return content


def find_samples(root: Path) -> tuple[dict[str, list[tuple[str, int]]], list[str]]:
    """(path, label) of each picture by split, and the class names. RunError where the two splits do not fit."""
    found = {}
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise RunError(
                f"no folder {root / split}: --data-dir must hold train/<class>/ and test/<class>/ with images"
            )
        try:
            found[split] = PictureFolder(root / split, is_valid_file=is_picture)
        except (OSError, RuntimeError) as error:  # no class folder, or one without images
            raise RunError(
                f"{root / split} does not hold a folder of pictures for each class: {error}".splitlines()[0]
            ) from None
    names = found["train"].classes
    if names != found["test"].classes:
        lonely = ", ".join(sorted(set(names) ^ set(found["test"].classes)))
        raise RunError(f"classes that are not in both {root / 'train'} and {root / 'test'}: {lonely}")
    if len(names) < 2:
        raise RunError(f"{root / 'train'} holds the single class {names[0]}: there is nothing to tell apart")
    return {split: part.samples for split, part in found.items()}, names


class PictureFolder(datasets.ImageFolder):
    """torchvision's ImageFolder without hidden folders, which file managers and notebooks leave behind."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and entry.name[0] != ".")
        if not names:
            raise FileNotFoundError("it holds no class folders")
        return names, {name: label for label, name in enumerate(names)}


def is_picture(path: str) -> bool:
    """Whether a file's name says that Pillow can read it."""
    name = os.path.basename(path)  # no Path: there are 60,000 of them
    return os.path.splitext(name)[1].lower() in Image.registered_extensions() and not name.startswith(".")


def fingerprint(root: Path, samples: dict[str, list[tuple[str, int]]]) -> str:
    """A digest of the pictures' places, sizes and times of change."""
    digest = hashlib.sha256(f"version {CACHE_VERSION}".encode())
    for path, label in [pair for pairs in samples.values() for pair in pairs]:
        status, name = os.stat(path), path.removeprefix(f"{root}{os.sep}")
        digest.update(f"{name} {label} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_cache(path: Path, key: str) -> dict[str, Any] | None:
    """What the cache holds, if it is whole and of these very pictures."""
    try:
        content = read_sealed(path)
    except Exception:  # missing or damaged: it is only a cache
        return None
    return content if isinstance(content, dict) and content.get("fingerprint") == key else None


def read_image(path: str | Path, img_size: int) -> Tensor:
    """One picture of any size and mode as uint8 (3, img_size, img_size). RunError, naming the file, if it is none."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):  # 16-bit grey, which Pillow would clip to white
                pixels = np.asarray(image)
                plain = image.mode in ("I", "F") and file.format not in ("PNG", "PPM")  # these have 16 bits at most
                if plain or not 0 <= pixels.min() <= pixels.max() < 2**16:
                    raise ValueError("its pixels have 32 bits, of a range that is not known: save it with 8 or 16")
                image = Image.fromarray((pixels >> 8).astype(np.uint8))
            image = image.convert("RGB")
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise RunError(f"can't read the image {path}: {str(error) or type(error).__name__}") from None
    if image.size != (img_size, img_size):
        image = image.resize((img_size, img_size), Image.Resampling.BILINEAR)  # with antialiasing
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
