"""Downloads of the official files, checked against digests that stand in the code, kept in the user's
cache."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from noise_models.errors import UsageError
from optical_dfa.data.files import ENVIRONMENT

TIMEOUT_S = 30


class _Bar:
    """What pooch wants of a progress bar, drawn by rich on standard error."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(title, total=None)
        self.total = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, size: int) -> None:
        self._progress.update(self._task, total=self.total, advance=size)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.refresh()


def fetch_file(title: str, url: str, sha256: str, target: Path, progress: bool) -> Path:
    """Download a file and keep its content, decompressed where it is a .gz, at `target`.

    Args:
        title: the data set's name, for messages.
        url: address of the file.
        sha256: digest of the DECOMPRESSED content.
        target: where the content goes; it appears there complete and checked, or not at all.
        progress: show a bar, if standard error is a terminal.
    Returns:
        `target`.
    Raises:
        UsageError: no network, or something else came than was asked for.
    """
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(prefix="optical-dfa-") as folder:
        packed = _fetch(title, url, Path(folder), progress)
        try:
            content = packed.read_bytes()
            content = gzip.decompress(content) if packed.suffix == ".gz" else content
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{url} sent a damaged file ({error}); {_instead(title)}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UsageError(f"{url} sent another file than the official one (SHA-256); {_instead(title)}")
    _place(content, target, title)
    return target


def fetch_tar(
    title: str, url: str, sha256: str, members: Iterable[str], folder: Path, progress: bool
) -> None:
    """Download a .tar.gz and keep the files `members` of it in `folder`, under their last names.

    Args:
        sha256: digest of the archive; it is checked before anything is unpacked.
        members: paths within the archive.
    Raises:
        UsageError: no network, or something else came than was asked for.
    """
    with tempfile.TemporaryDirectory(prefix="optical-dfa-") as temporary:
        packed = _fetch(title, url, Path(temporary), progress)
        with packed.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            raise UsageError(f"{url} sent another file than the official one (SHA-256); {_instead(title)}")
        with tarfile.open(packed) as archive:
            for member in members:
                content = archive.extractfile(member)
                assert content is not None, f"{member} of the checked archive is a file"
                _place(content.read(), folder / Path(member).name, title)


def _fetch(title: str, url: str, folder: Path, progress: bool) -> Path:
    import pooch

    # pooch reports the digest of what it fetched on standard error; ours is checked by the caller.
    pooch.get_logger().setLevel(logging.ERROR)
    name = url.rsplit("/", 1)[-1]
    try:
        if progress and sys.stderr.isatty():
            with _Bar(f"{title}: {name}") as bar:
                downloader = pooch.HTTPDownloader(progressbar=bar, timeout=TIMEOUT_S)
                path = pooch.retrieve(url, known_hash=None, fname=name, path=folder, downloader=downloader)
        else:
            downloader = pooch.HTTPDownloader(timeout=TIMEOUT_S)
            path = pooch.retrieve(url, known_hash=None, fname=name, path=folder, downloader=downloader)
    except (OSError, ValueError) as error:
        # requests' errors are OSErrors; their text is long and quotes the connection's object.
        raise UsageError(f"{url} cannot be downloaded ({type(error).__name__}); {_instead(title)}") from None
    return Path(path)


def _place(content: bytes, target: Path, title: str) -> None:
    """Write and rename: another process never sees half a file."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, target)
    except OSError as error:
        raise UsageError(f"cannot write {target} ({error.strerror}); {_instead(title)}") from None


def _instead(title: str) -> str:
    return f"try again, or give the folder that has the {title} files by --data-dir or {ENVIRONMENT}"
