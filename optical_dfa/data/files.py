"""Where the official files of a data set are on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from noise_models.errors import UsageError

ENVIRONMENT = "OPTICAL_DFA_DATA"


def cache_dir() -> Path:
    """Where downloads are kept."""
    import platformdirs

    return platformdirs.user_cache_path("optical-dfa")


def find(
    title: str, folders: Sequence[str], groups: Sequence[Sequence[str]], data_dir: Path | None
) -> list[Path] | None:
    """The paths of a data set's files, in order; None where it has to be downloaded.

    Args:
        title: the data set's name, for messages.
        folders: sub-folders in which the files may be, besides the given folder itself.
        groups: alternative layouts, each a list of file names; a file may also be there as name.gz.
        data_dir: folder named by the user: the files MUST be there. None: the folder in OPTICAL_DFA_DATA, if
            it has them, else the cache.
    Raises:
        UsageError: the folder does not exist, does not hold the files, or only some of them.
    """
    environment = os.environ.get(ENVIRONMENT)
    asked = data_dir if data_dir is not None else Path(environment) if environment else None
    where = "--data-dir" if data_dir is not None else ENVIRONMENT
    if asked is not None:
        asked = asked.expanduser()
        if not asked.is_dir():
            raise UsageError(
                f"{where} is {asked}; it must be an existing folder with the data files: correct it"
            )
        if found := _in_root(title, asked, folders, groups):
            return found
        if data_dir is not None:
            raise UsageError(
                f"{where} is {asked}, where no {title} files are, such as {folders[0]}/{groups[0][0]}; "
                f"correct it, or leave it out to use {ENVIRONMENT} or download them"
            )
    # A download that was cut off leaves some of the files: it is taken up again, not an error.
    with suppress(UsageError):
        return _in_root(title, cache_dir(), folders, groups)
    return None


def _in_root(
    title: str, root: Path, folders: Sequence[str], groups: Sequence[Sequence[str]]
) -> list[Path] | None:
    """The files in a sub-folder of the set's own name or, failing that, in `root` itself."""
    partial: UsageError | None = None
    for folder in (*(root / name for name in folders), root):
        for names in groups:
            candidates = [_plain_or_gz(folder, name) for name in names]
            found = [path for path in candidates if path is not None]
            if len(found) == len(names):
                return found
            if found and partial is None:
                missing = names[candidates.index(None)]
                partial = UsageError(f"{folder} has {title} files but not {missing}; add it, or its .gz")
    if partial is not None:
        raise partial
    return None


def _plain_or_gz(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None
