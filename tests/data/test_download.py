"""An archive arrives whole or not at all: tested with a local server that cuts, damages, refuses, drips and hangs."""

import contextlib
import hashlib
import io
import re
import tarfile
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torchvision import datasets
from tqdm import tqdm

from training.data import download, load_dataset
from training.errors import RunError, UsageError

ARCHIVE = datasets.CIFAR10.filename
DRIPS, DRIP_SECONDS = 40, 0.1  # an archive that drips comes in so many pieces, with so long a wait after each


class Mirror(ThreadingHTTPServer):
    """Serves one archive at every address, with the chosen fault, and records the requests."""

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.fault, self.has_ranges = content, "", True
        self.asked: list[tuple[str, str | None]] = []  # path and Range of each request
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/mirror"


class Handler(BaseHTTPRequestHandler):
    server: Mirror  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, *args):  # pyright: ignore[reportIncompatibleMethodOverride]
        pass

    def do_GET(self):
        mirror, fault = self.server, self.server.fault
        mirror.asked.append((self.path, self.headers["Range"]))
        wants_part = mirror.has_ranges and self.headers["Range"]
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if wants_part else 0
        content = b"<html>This domain is for sale</html>" if fault == "web page" else mirror.content[start:]
        if fault == "flipped byte":
            content = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
        if fault == "hangs":
            mirror.closing.wait()
            return
        if fault.isdigit() or not content:
            self.send_error(int(fault or 416))
            return
        self.send_response(206 if wants_part else 200)
        self.send_header("Content-Type", "text/html; charset=utf-8" if fault == "web page" else "application/gzip")
        if wants_part:
            self.send_header("Content-Range", f"bytes {start}-{len(mirror.content) - 1}/{len(mirror.content)}")
        if "no length" not in fault:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "drips":
            for start in range(0, len(content), len(content) // DRIPS):
                self.wfile.write(content[start : start + len(content) // DRIPS])
                mirror.closing.wait(DRIP_SECONDS)
            return
        self.wfile.write(content[: len(content) * 7 // 8] if "stops" in fault else content)
        if fault == "stops and hangs":
            mirror.closing.wait()


@pytest.fixture
def mirror(cifar):
    with Mirror(cifar.path.read_bytes()) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


@pytest.fixture
def folder(tmp_path) -> Path:
    """The data folder, which does not exist yet."""
    return tmp_path / "data"


def get(folder: Path, url: str = ""):
    return load_dataset("cifar10", str(folder), 32, url)


def assert_whole(dataset, cifar) -> None:
    images = torch.cat([dataset.train_images, dataset.test_images])
    assert images.flatten(1).tolist() == cifar.rows.tolist()
    assert dataset.train_labels.tolist() + dataset.test_labels.tolist() == cifar.labels


def error_of(folder: Path, url: str = "") -> str:
    """The one line of the error that the download ends with; it names the three ways out."""
    with pytest.raises(RunError) as caught:
        get(folder, url)
    line = str(caught.value)
    assert "\n" not in line
    assert not isinstance(caught.value, UsageError)
    for way in ("cifar10", "--data-url", ARCHIVE, str(folder), "image-folder"):
        assert way in line
    return line


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*")}


@pytest.mark.parametrize("address", [f"/{ARCHIVE}", "/another name.tgz", "", "/"])
def test_a_mirror_is_the_address_of_the_archive_or_its_folder_and_is_asked_once(cifar, mirror, folder, address):
    url = (mirror.url + address).replace(" ", "%20")
    assert_whole(get(folder, url), cifar)
    path = f"/mirror{address.replace(' ', '%20')}" if address.endswith("gz") else f"/mirror/{ARCHIVE}"
    assert mirror.asked == [(path, None)]
    assert names_in(folder) == {ARCHIVE, datasets.CIFAR10.base_folder}
    assert_whole(get(folder, url), cifar)
    assert len(mirror.asked) == 1


def test_without_a_mirror_the_official_address_is_asked(cifar, mirror, folder, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{mirror.url}/official.tar.gz")
    assert_whole(get(folder), cifar)
    assert mirror.asked == [("/mirror/official.tar.gz", None)]


class SeenBar(tqdm):
    seen: "SeenBar"  # the bar that was created last

    def __init__(self, *args, **arguments):
        super().__init__(*args, **arguments | {"disable": False, "file": io.StringIO()})
        SeenBar.seen = self


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_download_that_broke_off_is_resumed(cifar, mirror, folder, has_ranges, monkeypatch):
    monkeypatch.setattr(download, "tqdm", SeenBar)
    mirror.fault, mirror.has_ranges = "stops", has_ranges
    partial, kept = folder / f"{ARCHIVE}.part", []
    for _ in range(3):
        assert "broke off" in error_of(folder, mirror.url)
        assert names_in(folder) == {partial.name}
        assert mirror.content.startswith(partial.read_bytes())
        kept.append(partial.stat().st_size)
    assert kept == sorted(set(kept)) if has_ranges else len(set(kept)) == 1
    mirror.fault = ""
    assert_whole(get(folder, mirror.url), cifar)
    assert names_in(folder) == {ARCHIVE, datasets.CIFAR10.base_folder}
    assert [part for _, part in mirror.asked] == [None, *(f"bytes={size}-" for size in kept)]
    assert (SeenBar.seen.n, SeenBar.seen.total) == (len(mirror.content), len(mirror.content))


def test_a_slow_server_has_all_the_time_it_needs(cifar, mirror, folder, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", DRIPS * DRIP_SECONDS / 2)
    mirror.fault, start = "drips", time.monotonic()
    assert_whole(get(folder, mirror.url), cifar)
    assert time.monotonic() - start > 1.5 * download.TIMEOUT
    assert len(mirror.asked) == 1


def lines_of_download(mirror: Mirror, path: Path, capsys) -> list[str]:
    """What a download of a file of 25 MB prints; a `.part` that is there is resumed."""
    mirror.content = bytes(25_000_000)
    with contextlib.suppress(RunError):
        download.download(mirror.url, path, hashlib.md5(mirror.content).hexdigest())
    return capsys.readouterr().out.splitlines()


def assert_tenths(lines: list[str], tenths: Iterable[int]) -> None:
    """Each line says how many MB, and what percentage of 25 MB, have come."""
    for line, tenth in zip(lines, tenths, strict=True):
        number, percent = line.strip().removesuffix("%)").split(" MB (")
        assert float(number) == pytest.approx(2.5 * tenth, abs=0.2)
        assert int(percent) == 10 * tenth


def test_without_a_terminal_a_line_names_size_and_source_and_others_follow_every_ten_percent(mirror, tmp_path, capsys):
    first, *lines = lines_of_download(mirror, tmp_path / "file", capsys)
    assert first == f"Downloading {mirror.url} (25.0 MB)"
    assert_tenths(lines, range(1, 11))


def test_the_lines_of_a_resumed_download_count_what_was_there(mirror, tmp_path, capsys):
    mirror.fault = "stops"  # after 7/8
    assert_tenths(lines_of_download(mirror, tmp_path / "file", capsys)[1:], range(1, 9))
    mirror.fault = ""
    first, *lines = lines_of_download(mirror, tmp_path / "file", capsys)
    assert first == f"Downloading {mirror.url} (25.0 MB, 21.9 MB of it are here)"
    assert_tenths(lines, [9, 10])


def test_where_the_size_is_unknown_a_line_comes_every_20_megabytes(mirror, tmp_path, capsys):
    mirror.fault = "no length"
    begin, line = lines_of_download(mirror, tmp_path / "file", capsys)
    assert begin == f"Downloading {mirror.url} (size unknown)"
    assert re.fullmatch(r"  20\.\d MB", line)  # the first block past 20 MB may be of any size


def test_each_line_is_in_the_log_at_once(tmp_path):
    log, blocks = tmp_path / "log", [bytes(1_000_000)] * 10
    with open(log, "w") as file, contextlib.redirect_stdout(file):
        for number, _ in enumerate(download.show_progress(blocks, "URL", 0, 10_000_000), start=1):
            lines = [f"  {i}.0 MB ({10 * i}%)" for i in range(1, number + 1)]
            assert log.read_text().splitlines() == ["Downloading URL (10.0 MB)", *lines]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_console_on_a_full_disk_ends_no_download(cifar, mirror, folder):
    with contextlib.suppress(OSError), open("/dev/full", "w") as file, contextlib.redirect_stdout(file):
        dataset = get(folder, mirror.url)
    assert_whole(dataset, cifar)


def test_on_a_terminal_a_bar_stands_in_for_the_lines(cifar, mirror, folder, capsys, monkeypatch):
    monkeypatch.setattr(download, "tqdm", SeenBar)
    assert_whole(get(folder, mirror.url), cifar)
    assert capsys.readouterr().out == ""
    assert SeenBar.seen.n == len(mirror.content)


@pytest.mark.parametrize("fault", ["hangs", "stops and hangs"])
def test_a_server_that_sends_nothing_for_too_long_is_given_up(cifar, mirror, folder, fault, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(download, "TIMEOUT", 0.3 if fault == "hangs" else 3)  # the other sends something first
        mirror.fault = fault
        assert "timed out" in error_of(folder, mirror.url)
    if fault == "stops and hangs":
        partial = (folder / f"{ARCHIVE}.part").read_bytes()
        assert partial
        assert mirror.content.startswith(partial)
    mirror.fault = ""
    assert_whole(get(folder, mirror.url), cifar)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("flipped byte", "md5"), ("stops, no length", "md5"), ("404", "404"), ("503", "503"), ("web page", "web page"),
    ],
)  # fmt: skip
def test_what_is_not_the_archive_is_refused_and_removed(cifar, mirror, folder, fault, said):
    mirror.fault = fault
    line = error_of(folder, mirror.url)
    assert said in line
    assert f"{mirror.url}/{ARCHIVE}" in line
    assert names_in(folder) == set()
    mirror.fault = ""
    assert_whole(get(folder, mirror.url), cifar)
    assert [part for _, part in mirror.asked] == [None, None]


@pytest.mark.parametrize("fault", ["404", "503", "web page", "hangs"])
def test_a_server_error_keeps_what_was_downloaded_before(cifar, mirror, folder, fault, monkeypatch):
    mirror.fault = "stops"
    error_of(folder, mirror.url)
    partial = (folder / f"{ARCHIVE}.part").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(download, "TIMEOUT", 0.3)
        mirror.fault = fault
        error_of(folder, mirror.url)
    assert (folder / f"{ARCHIVE}.part").read_bytes() == partial
    mirror.fault = ""
    assert_whole(get(folder, mirror.url), cifar)
    assert mirror.asked[-1][1] == f"bytes={len(partial)}-"


def test_a_server_need_not_send_the_length(cifar, mirror, folder):
    mirror.fault = "no length"
    assert_whole(get(folder, mirror.url), cifar)


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("length", [0, 1000, 10**6])
def test_the_part_of_another_file_is_replaced(cifar, mirror, folder, length, has_ranges):
    mirror.has_ranges = has_ranges
    folder.mkdir()
    (folder / f"{ARCHIVE}.part").write_bytes(bytes(length))
    assert_whole(get(folder, mirror.url), cifar)
    assert len(mirror.asked) == (2 if has_ranges and length else 1)
    assert names_in(folder) == {ARCHIVE, datasets.CIFAR10.base_folder}


def test_the_part_of_another_file_and_a_wrong_archive_are_both_removed(mirror, folder):
    folder.mkdir()
    (folder / f"{ARCHIVE}.part").write_bytes(bytes(1000))
    mirror.fault = "flipped byte"
    assert "md5" in error_of(folder, mirror.url)
    assert names_in(folder) == set()


def test_a_part_that_is_already_complete_becomes_the_archive(cifar, mirror, folder):
    folder.mkdir()
    (folder / f"{ARCHIVE}.part").write_bytes(mirror.content)
    assert_whole(get(folder, mirror.url), cifar)
    assert len(mirror.asked) == 1


def test_an_archive_put_there_by_hand_is_used_without_a_request(cifar, mirror, folder):
    folder.mkdir()
    (folder / ARCHIVE).write_bytes(mirror.content)
    assert_whole(get(folder, mirror.url), cifar)
    batch = folder / datasets.CIFAR10.base_folder / "data_batch_1"
    batch.write_bytes(batch.read_bytes()[:-1])  # a damaged file is replaced from the archive
    assert_whole(get(folder, mirror.url), cifar)
    assert mirror.asked == []


def test_a_wrong_archive_put_there_by_hand_is_refused_and_kept(mirror, folder):
    folder.mkdir()
    (folder / ARCHIVE).write_bytes(mirror.content[:-1])
    line = error_of(folder, mirror.url)
    for named in (str(folder / ARCHIVE), "md5", hashlib.md5(mirror.content).hexdigest()):
        assert named in line
    assert mirror.asked == []
    assert (folder / ARCHIVE).read_bytes() == mirror.content[:-1]


def test_without_a_network_one_line_names_the_ways_out(cifar, closed_url, folder):
    line = error_of(folder)
    for named in (closed_url, "--data-url", f"{ARCHIVE} put into {folder} by hand", "--dataset digits", "image-folder"):
        assert named in line
    assert names_in(folder) == set()


@pytest.mark.parametrize(
    "url", ["no-url", "http://no host/", "http://[::1/", "http://127.0.0.1:port/", Path(__file__).as_uri()]
)
def test_an_invalid_address_is_one_line_too(folder, url):
    said = error_of(folder, url)
    assert url in said
    assert ("is no web address" in said) != url.startswith("http")


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="Python before 3.11.4 does not look")
@pytest.mark.parametrize("way", ["path", "link"])
def test_an_archive_with_a_member_outside_the_folder_is_refused(mirror, folder, way, monkeypatch, tmp_path):
    file, name = io.BytesIO(), "../evil"
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        if way == "link":
            link = tarfile.TarInfo("cifar-10-batches-py")
            link.type, link.linkname = tarfile.SYMTYPE, ".."
            tar.addfile(link)
            name = "cifar-10-batches-py/evil"
        member = tarfile.TarInfo(name)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    mirror.content = file.getvalue()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(mirror.content).hexdigest())
    before = names_in(tmp_path)
    with pytest.raises(RunError, match=r"cifar10.*outside"):
        get(folder, mirror.url)
    assert names_in(tmp_path) == before | {"data"}
    assert names_in(folder) == {ARCHIVE}
