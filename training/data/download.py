"""Getting an archive: resumed where it broke off, checked by md5, and never half there under its own name."""

import errno
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock
from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from training.errors import RunError

TIMEOUT = 30  # seconds without a byte, after which the server is given up
BLOCK = 1 << 16  # bytes


def fetch(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path`, going on with what an earlier try left in `path`.part.

    RunError for an address that does not answer, an answer that is cut short, and a file of another md5 (removed).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):  # another run may want the same: it waits, and finds it here
        try:
            if not path.exists():
                fetch_alone(url, path, md5)
        finally:
            lock.unlink()


def fetch_alone(url: str, path: Path, md5: str) -> None:
    """The same for a process that no other comes in between."""
    partial = path.with_name(f"{path.name}.part")
    resumed = partial.exists() and partial.stat().st_size > 0
    download(url, partial)
    if calculate_md5(partial) != md5 and resumed:  # the beginning may have been of another file
        partial.unlink()
        download(url, partial)
    if (found := calculate_md5(partial)) != md5:
        partial.unlink()
        raise RunError(f"{url} sent a file with md5 {found}, the official one is {md5}: use another address")
    partial.rename(path)


def download(url: str, partial: Path) -> None:
    """Append to `partial` what it lacks of `url`, or all of it where the server does not send parts."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    have = partial.stat().st_size if partial.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            if "html" in response.headers.get("Content-Type", ""):
                raise RunError(f"{url} answers with a web page, not with the archive: check the address")
            appends = response.status == http.HTTPStatus.PARTIAL_CONTENT
            have = have if appends else 0
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            bar = tqdm(desc=partial.stem, initial=have, total=total, unit="B", unit_scale=True, disable=None)
            with open(partial, "ab" if appends else "wb") as file, bar:
                while block := response.read1(BLOCK):  # what is there, so that a stall loses nothing
                    file.write(block)
                    bar.update(len(block))
                    have += len(block)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:  # all of it is here, or another file
            return
        raise RunError(f"{url} answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:  # file:// is an AttributeError
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise RunError(f"can't write {partial}: {error}") from None
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise RunError(f"{url} did not send the archive ({reason})") from None
    if total is not None and have < total:
        raise RunError(f"{url} broke off after {have:,} of {total:,} bytes; they are kept: the same command goes on")
