"""What several test files need: a launcher of runs, an archive in CIFAR's format, pictures, two addresses."""

import hashlib
import http.server
import io
import os
import pickle
import signal
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Launcher
from torchvision import datasets

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are of runs on a CPU, on every machine

# Ignored in the background of a script, and under nohup: the tests of these signals need them.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """One thread is faster for work this small, and the bits of a run depend on the number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def launcher(tmp_path_factory) -> Iterator[Launcher]:
    """It starts runs in processes of their own, without the seconds that importing torch takes."""
    with Launcher(tmp_path_factory.mktemp("launched")) as started:
        yield started


class Archive(NamedTuple):
    """20 training images and 6 test images in the official format, alone in a folder."""

    name: str  # of the dataset
    path: Path
    class_names: list[str]
    rows: np.ndarray  # (26, 3072): the archive's own rows, the test images last
    labels: list[int]


@pytest.fixture
def closed_url(monkeypatch):
    """An address where nobody listens: the port is taken, so that no other process gets it."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/archive.tar.gz"


@pytest.fixture
def cifar(request, monkeypatch, tmp_path, closed_url) -> Archive:
    """A small archive in place of the official one: torchvision accepts its digests, and the address leads nowhere."""
    name = getattr(request, "param", "cifar10")
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    coarse = {"coarse_labels": [0] * 20} if name == "cifar100" else {}
    label_key = "fine_labels" if coarse else "labels"
    class_names = [f"class {number}" for number in range(100 if coarse else 10)]
    rng, md5s, rows, labels = np.random.default_rng(0), {}, [], []
    path = tmp_path / "archive" / source.filename
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:

        def add(member: str, content: dict) -> None:
            pickled = pickle.dumps(content, protocol=2)
            md5s[member] = hashlib.md5(pickled).hexdigest()
            info = tarfile.TarInfo(f"{source.base_folder}/{member}")
            info.size = len(pickled)
            tar.addfile(info, io.BytesIO(pickled))

        for parts in (source.train_list, source.test_list):
            for member, _ in parts:
                n = 20 // len(parts) if parts is source.train_list else 6
                rows.append(rng.integers(256, size=(n, 3 * 32 * 32), dtype=np.uint8))
                labels += (part_labels := rng.integers(len(class_names), size=n).tolist())
                add(member, {"data": rows[-1], label_key: part_labels, **coarse})
        add(source.meta["filename"], {source.meta["key"]: class_names})
    monkeypatch.setattr(source, "url", closed_url)
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(source, attribute, [[member, md5s[member]] for member, _ in getattr(source, attribute)])
    monkeypatch.setattr(source, "meta", source.meta | {"md5": md5s[source.meta["filename"]]})
    return Archive(name, path, class_names, np.concatenate(rows), labels)


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Two classes, red and grey, with one picture each in train and test, dated 1970."""
    for split in ("train", "test"):
        for name, colour in (("red", (255, 0, 0)), ("grey", (99, 99, 99))):
            path = tmp_path / split / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8), colour).save(path)
            os.utime(path, (0, 0))
    return tmp_path


@pytest.fixture
def slow_url(monkeypatch) -> Iterator[str]:
    """The address of a file of 30 bytes, sent over a real socket in six seconds."""
    monkeypatch.setenv("no_proxy", "*")

    class Drip(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "30")
            self.end_headers()
            for _ in range(30):
                self.wfile.write(b".")
                time.sleep(0.2)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drip) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/archive.tar.gz"
        server.shutdown()
