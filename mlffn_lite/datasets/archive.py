"""Fetch an archive so that it can be resumed and trusted, and unpack it so that it cannot do harm."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import pooch
import requests
from tqdm.auto import tqdm

from ..errors import DownloadError

_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError),
    *(RuntimeError, NotImplementedError, ValueError, OverflowError),
)
MAX_MEMBERS = 100_000
"""Files and folders in an archive; the largest set of the catalogue has a fifth of it."""
MAX_RATIO = 100
"""Times its own size that an archive may grow, beyond :data:`FREE_BYTES`; archives of photographs hardly grow."""
FREE_BYTES = 256 * 1024**2
MAX_NAME = 255
"""Bytes of a member's name between two slashes, as most file systems have it."""


class _Resuming:
    """A downloader for pooch that keeps what has arrived in ``part`` and asks only for the rest the next time.

    Without a checksum a file that changed meanwhile could not be told apart, so then every download starts anew.
    """

    def __init__(self, part: Path, resume: bool, progress: bool) -> None:
        self.part, self.resume, self.progress = part, resume, progress

    def __call__(self, url: str, output: str, _pooch: object) -> None:
        done = self.part.stat().st_size if self.resume and self.part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
        with requests.get(url, stream=True, timeout=30, headers=headers) as response:
            if response.status_code == 416:  # nothing is left to ask for; the checksum tells whether it is all there
                os.replace(self.part, output)
                return
            response.raise_for_status()
            done = done if response.status_code == 206 else 0
            total = done + int(response.headers.get("Content-Length", 0))
            expected, quiet = total or None, not self.progress
            bar = tqdm(None, self.part.stem, expected, initial=done, unit="B", unit_scale=True, disable=quiet)
            with bar, self.part.open("ab" if done else "wb") as file:
                for chunk in response.iter_content(1 << 16):
                    file.write(chunk)
                    bar.update(len(chunk))
        got = self.part.stat().st_size
        if got < total:
            raise requests.ConnectionError(f"the connection closed after {got:,} of {total:,} bytes")
        os.replace(self.part, output)


def fetch(url: str, archive: Path, sha256: str | None, *, progress: bool = True) -> None:
    """Download a file unless it is there, through a temporary name, and check its SHA-256, also if it was there.

    A file that does not match is fetched anew. Without a known checksum the computed one is printed.

    Raises
    ------
    DownloadError
        If the server cannot be reached or answers with an error, the connection breaks off, or the checksum differs.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(archive.name + ".part")
    pooch.get_logger().setLevel("WARNING")  # what it would say is said here
    try:
        pooch.retrieve(url, sha256, archive.name, archive.parent, downloader=_Resuming(part, bool(sha256), progress))
    except requests.HTTPError as error:
        raise DownloadError(f"the server answered {error}") from error
    except requests.Timeout as error:
        raise DownloadError(f"{url} did not answer in time") from error
    except requests.RequestException as error:
        kept = f"; {part.stat().st_size:,} bytes are kept, run it again to go on" if sha256 and part.exists() else ""
        wrong = f"; {archive} is there but is not the file of SHA-256 {sha256}" if archive.exists() else ""
        raise DownloadError(f"{url}: no connection, or it broke off{kept}{wrong}") from error
    except ValueError as error:  # pooch's word for a wrong checksum; it has deleted the file
        raise DownloadError(f"{url} sent a file whose SHA-256 is not {sha256}; the file was deleted") from error
    if sha256 is None:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        print(f"{archive.name}: SHA-256 {found}; no checksum is known for this file, so it could not be verified")


def extract(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file (plain, gz, bz2, xz) into a new folder.

    All names are checked before anything is written: an archive with an absolute path, a path through ``..``, a link
    of any kind or a device is refused as a whole, and so is one of too many members, one that grows a hundredfold, and
    one that needs more space than there is.

    Raises
    ------
    DownloadError
        If the archive is refused, damaged, or of an unknown kind.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                _check(archive, folder, ((i.filename, _zip_kind(i), i.file_size) for i in file.infolist()))
                file.extractall(folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:
                members = list(_within(archive, file))
                most = _limit(archive)
                while file.fileobj and file.fileobj.read(1 << 20):  # on to the end, where gz and xz have their checks
                    if file.fileobj.tell() > most + (MAX_MEMBERS << 10):
                        raise DownloadError(f"{archive} is refused: it grows beyond {most / 1e9:.1f} GB")
                _check(archive, folder, ((m.name, m.isfile() or m.isdir(), m.size) for m in members))
                file.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
                file.extractall(folder, members)
        else:
            raise DownloadError(f"{archive} is neither a zip nor a tar file, or is damaged; delete it and try again")
    except _DAMAGED as error:
        raise DownloadError(f"{archive} is damaged ({error}); delete it and try again") from error
    except OSError as error:
        if error.errno is not None:  # of the disk
            raise
        raise DownloadError(f"{archive} is damaged ({error}); delete it and try again") from error  # bz2's word


def _zip_kind(info: zipfile.ZipInfo) -> bool:
    """Whether a zip member is a plain file or folder; archives made on Unix state it, others are plain."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    return kind in (0, stat.S_IFREG, stat.S_IFDIR)


def _limit(archive: Path) -> int:
    """Return how many bytes an archive may hold."""
    return FREE_BYTES + MAX_RATIO * archive.stat().st_size


def _within(archive: Path, file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file, and stop where they become too many or too large: each costs time to reach."""
    need, most = 0, _limit(archive)
    for count, member in enumerate(file, 1):
        need += member.size
        if count > MAX_MEMBERS or need > most:
            _refuse_size(archive, count, need)
        yield member


def _refuse_size(archive: Path, count: int, need: int) -> NoReturn:
    raise DownloadError(
        f"{archive} is refused: {count} members with {need / 1e9:.1f} GB are more than its size explains; it is no"
        " archive of images"
    )


def _check(archive: Path, folder: Path, members: Iterable[tuple[str, bool, int]]) -> None:
    need = count = 0
    for name, plain, size in members:
        count += 1
        parts = name.replace("\\", "/").split("/")
        if parts[0] == "" or ":" in parts[0] or ".." in parts:
            raise DownloadError(f"{archive} is refused: its member {name!r} would be written outside the folder")
        if any(len(part.encode(errors="surrogatepass")) > MAX_NAME for part in parts):
            raise DownloadError(f"{archive} is refused: its member {name[:40]!r}... has a name that is too long")
        if not plain:
            raise DownloadError(f"{archive} is refused: its member {name!r} is a link or a device, not a file")
        need += size
    if count > MAX_MEMBERS or need > _limit(archive):
        _refuse_size(archive, count, need)
    free = shutil.disk_usage(folder.parent).free
    if need > free:
        raise DownloadError(f"{archive} needs {need / 1e9:.1f} GB unpacked, but {folder} has {free / 1e9:.1f} GB left")
