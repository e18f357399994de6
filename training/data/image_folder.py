"""Folders of pictures of any size and mode: read in parallel, and cached as one file of uint8 tensors."""

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import make_dataset
from tqdm import tqdm

from training.console import say
from training.errors import RunError, first_line, is_out_of_memory
from training.files import read_sealed, write_sealed

CACHE_VERSION = 2  # raise it when read_image makes other pixels of a picture than before
EXTENSIONS = (  # Pillow also reads .pdf, .h5, .mpg and others that nobody means as pictures
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".j2k",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
)  # fmt: skip


def read_image_folder(root: Path, img_size: int, cache: bool) -> dict[str, Any]:
    """Read root/train/<class>/* and root/test/<class>/* as RGB images of img_size x img_size pixels.

    Returns class_names, train_images (n, 3, img_size, img_size), train_labels (n,), test_images and test_labels.
    With `cache` they come from one file in `root`, which is rewritten when a picture was added, removed or changed.
    RunError, with the path, for what is missing or can't be decoded.
    """
    samples, class_names, left_out = find_samples(root)
    cache_file = root / f".images-{img_size}.pt"
    key = fingerprint(root, samples)
    if cache and (cached := read_cache(cache_file, key)) is not None:
        return cached
    if left_out:
        kinds = ", ".join(f"{number:,} {kind or 'without an extension'}" for kind, number in left_out.most_common(5))
        say(f"note: files in {root} that are no pictures by their names are left out: {kinds}")
    content: dict[str, Any] = {"class_names": class_names}
    for split, pairs in samples.items():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(lambda pair: read_image(pair[0], img_size), pairs)
            bar = tqdm(decoded, f"reading {split} images", len(pairs), disable=None, leave=False)
            content[f"{split}_images"] = torch.stack(list(bar))
        content[f"{split}_labels"] = torch.tensor([label for _, label in pairs])
    if cache:
        try:
            write_sealed(cache_file, content | {"fingerprint": key})
        except RunError as error:  # a read-only folder or a full disk: the run works without a cache
            say(f"note: the images are not cached: {error}")
    return content


def find_samples(root: Path) -> tuple[dict[str, list[tuple[str, int]]], list[str], Counter[str]]:
    """Return (path, label) of each picture by split, the class names, and how many other files have which extension.

    RunError where the two splits do not fit.
    """
    class_names, test_classes = (find_classes(root / split) for split in ("train", "test"))
    if class_names != test_classes:
        unmatched = ", ".join(sorted(set(class_names) ^ set(test_classes)))
        raise RunError(f"classes that are not in both {root / 'train'} and {root / 'test'}: {unmatched}")
    if len(class_names) < 2:
        raise RunError(f"{root / 'train'} holds the single class {class_names[0]}: at least two are needed")

    left_out: Counter[str] = Counter()

    def is_picture(path: str) -> bool:
        if f"{os.sep}." in path.removeprefix(str(root)):  # hidden: the file, or a folder inside the class
            return False
        extension = os.path.splitext(path)[1].lower()
        if extension not in EXTENSIONS:
            left_out[extension] += 1
        return extension in EXTENSIONS

    check_folders(root)
    labels, samples = {name: label for label, name in enumerate(class_names)}, {}
    for split in ("train", "test"):
        try:
            samples[split] = make_dataset(root / split, labels, is_valid_file=is_picture)  # in torchvision's order
        except FileNotFoundError as error:  # a class without pictures
            raise RunError(f"{root / split}: {first_line(error)} Pictures are *{', *'.join(EXTENSIONS)}") from None
    return samples, class_names, left_out


def check_folders(root: Path) -> None:
    """RunError for a folder that can't be read, and where links lead to pictures twice, or for ever."""

    def fail(error: OSError) -> None:  # else os.walk, make_dataset's too, leaves the folder out in silence
        raise RunError(f"can't read the folder {error.filename}: {error.strerror}")

    known: dict[str, str] = {}
    for split in ("train", "test"):
        for folder, subfolders, files in os.walk(root / split, onerror=fail, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            first = known.setdefault(os.path.realpath(folder), folder)
            endless = folder.startswith(f"{first}{os.sep}")
            if endless or (first != folder and any(name.lower().endswith(EXTENSIONS) for name in files)):
                raise RunError(f"{folder} and {first} are the same folder: remove the link")


def find_classes(folder: Path) -> list[str]:
    """The names of the subfolders that are not hidden."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise RunError(
            f"can't read the folder {folder} ({error.strerror}): --data-dir must hold train/<class>/ and test/<class>/ "
            "with pictures; or name another --dataset"
        ) from None
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:  # it is the class's name too, in files that are UTF-8
            raise RunError(f"the name of the folder {folder / name} is not UTF-8: rename it") from None
    if not names:
        raise RunError(f"{folder} holds no folders: it needs a folder of pictures for each class")
    return names


def fingerprint(root: Path, samples: dict[str, list[tuple[str, int]]]) -> str:
    """A digest of the pictures' paths, labels, sizes and modification times, and of what decodes them."""
    digest = hashlib.sha256(f"version {CACHE_VERSION}, Pillow {PIL.__version__}".encode())
    for path, label in [pair for pairs in samples.values() for pair in pairs]:
        try:
            status, name = os.stat(path), path.removeprefix(f"{root}{os.sep}")
        except OSError as error:  # a link to nowhere
            raise RunError(f"can't read the image {path}: {error.strerror}") from None
        digest.update(f"{name} {label} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def read_cache(path: Path, key: str) -> dict[str, Any] | None:
    """The cache's content, or None where it is missing, damaged or of other pictures."""
    try:
        content = read_sealed(path)
    except Exception:  # any reason will do: the pictures can be decoded again
        return None
    return content if isinstance(content, dict) and content.pop("fingerprint", None) == key else None


def read_image(path: str | Path, img_size: int) -> Tensor:
    """Read a picture of any size and mode as uint8 (3, img_size, img_size). RunError, with the path, if it can't be."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):  # 16-bit grey, which convert() would clip to white
                pixels = np.asarray(image)
                has_32_bits = image.mode in ("I", "F") and file.format not in ("PNG", "PPM")  # which have at most 16
                if has_32_bits or not 0 <= pixels.min() <= pixels.max() < 2**16:
                    raise ValueError("its pixels have 32 bits and an unknown range: save it with 8 or 16 bits")
                image = Image.fromarray((pixels >> 8).astype(np.uint8))
            if image.has_transparency_data:  # what shows through is white, as paper is
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
    except Exception as error:  # a damaged file can raise anything in Pillow
        if is_out_of_memory(error):
            raise MemoryError(f"reading the image {path}") from None
        raise RunError(f"can't read the image {path}: {first_line(error)}") from None
    image = image.resize((img_size, img_size), Image.Resampling.BILINEAR)  # with antialiasing
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
