"""The download of an archive: it resumes where it broke off, and a file appears under its own name only when whole."""

import errno
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from training.console import say
from training.errors import RunError, first_line

TIMEOUT = 30  # seconds without a byte, after which the download ends; a slow server has all the time it needs
BLOCK = 1 << 16  # bytes
LINE_EVERY = 20_000_000  # bytes, where the size is unknown


def download(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path`; what an earlier attempt left in `path`.part is not asked for again.

    RunError for an address that does not answer, an answer that is cut short, and a file of another md5 (removed).
    """
    if not url.lower().startswith(("http://", "https://")):
        raise RunError(f"{url} is no web address: one begins with http:// or https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    resumed = partial.exists() and partial.stat().st_size > 0
    download_rest(url, partial)
    if resumed and calculate_md5(partial) != md5:  # the part may have been of another file
        partial.unlink()
        download_rest(url, partial)
    if (found := calculate_md5(partial)) != md5:
        partial.unlink()
        raise RunError(f"{url} sent a file with md5 {found}, the official is {md5}: try again, or another address")
    partial.rename(path)


@contextmanager
def one_process(folder: Path, name: str) -> Iterator[None]:
    """Inside it, no other process downloads or unpacks the dataset `name` in that folder."""
    lock = FileLock(folder / f".{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        acquired = lock.acquire(blocking=False)
    except Timeout:
        say(f"Waiting for another process that downloads or unpacks {name}")
        acquired = lock.acquire()
    except OSError as error:
        raise RunError(f"can't write to {folder}: {first_line(error)}") from None
    with acquired:
        try:
            yield
        finally:
            Path(lock.lock_file).unlink()


def download_rest(url: str, partial: Path) -> None:
    """Append to `partial` what is missing of `url`, or write it anew where the server does not send ranges."""
    start = partial.stat().st_size if partial.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            if "html" in response.headers.get("Content-Type", ""):
                raise RunError(f"{url} answers with a web page, not with the archive: check the address")
            appends = response.status == http.HTTPStatus.PARTIAL_CONTENT
            start = start if appends else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            blocks = iter(lambda: response.read1(BLOCK), b"")  # read1 returns what is there: a stall loses nothing
            with open(partial, "ab" if appends else "wb") as file:
                for block in show_progress(blocks, url, start, total):
                    file.write(block)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:  # all is here, or of another file
            return
        raise RunError(f"{url} answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise RunError(f"can't write {partial}: {error}") from None
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise RunError(
            f"{url} did not send the archive ({reason}); what came is kept: the same command goes on"
        ) from None
    if total is not None and (size := partial.stat().st_size) < total:
        raise RunError(f"{url} broke off after {size:,} of {total:,} bytes; they are kept: the same command goes on")


def show_progress(blocks: Iterable[bytes], url: str, start: int, total: int | None) -> Iterator[bytes]:
    """Pass the blocks on and show how many bytes have come: a bar on a terminal, elsewhere a line every ten percent.

    `start` is the number of bytes that were there before, `total` the size of the whole file.
    """
    size = f"{total / 1e6:.1f} MB" if total else "size unknown"
    received = start
    with tqdm(desc="downloading", initial=start, total=total, unit="B", unit_scale=True, disable=None) as bar:
        if bar.disable:
            resumed = f", {start / 1e6:.1f} MB of it are here" if start else ""
            say(f"Downloading {url} ({size}{resumed})")
        for block in blocks:
            before, received = received, received + len(block)
            bar.update(len(block))
            if bar.disable and lines_due(received, total) > lines_due(before, total):
                percent = f" ({100 * received // total}%)" if total else ""
                say(f"  {received / 1e6:.1f} MB{percent}")
            yield block


def lines_due(received: int, total: int | None) -> int:
    return 10 * received // total if total else received // LINE_EVERY
