"""Scattering coefficients of images, to the second order: a front that costs no privacy.

    S_0 = x * φ,   S_1 = |x * ψ_j,θ| * φ,   S_2 = ||x * ψ_j,θ| * ψ_j',θ'| * φ,   j < j' < J = 2, eight directions

on a grid of every fourth pixel (Bruna and Mallat 2013, arXiv 1203.1513; computed by kymatio), each record's maps then
brought to mean 0 and mean square 1 in groups (group normalisation of that record alone). All of it is a function of one
record, so that a private run pays nothing for it: what a record moves is bounded after it (Tramèr and Boneh 2021,
arXiv 2011.11660).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from noise_models.errors import UsageError
from optical_dfa.data.features.card import FeaturesCard
from optical_dfa.data.files import cache_dir

if TYPE_CHECKING:
    from torch import Tensor

    from optical_dfa.data.dataset import Dataset

SCALES, DIRECTIONS = 2, 8
MAPS: Final = 1 + SCALES * DIRECTIONS + DIRECTIONS**2 * SCALES * (SCALES - 1) // 2  # of one channel: 81
GROUPS: Final = 27
LEAST_SIDE = 8
_TOGETHER = 250  # records
_PARTS: Final = ("train", "test")
_DIGESTS: Final = "digests.json"  # of the files, by which damaged ones are computed again
_FORM = 1  # of what is kept; another number where the coefficients become others


@FeaturesCard(
    summary="scattering coefficients of images to the second order, of each record alone",
    grammar="scattering[:GROUPS] with normalisation in GROUPS groups of maps, such as scattering:27 (its default)",
    of_one_record=True,
    needs_argument=False,
)
def scattering(data: Dataset, argument: str | None, progress: bool) -> Dataset:
    """The data set with its images replaced by their normalised coefficients, float32, 81 maps of each channel.

    They are computed once and kept in the user's cache under a digest of the inputs, and mapped from there.

    Args:
        data: images of `LEAST_SIDE` pixels a side or more.
        argument: number of groups that a record's maps are normalised in; it must divide that of the maps.
        progress: show a bar, if standard error is a terminal.
    Raises:
        UsageError: records that are no such images, another number of groups, kymatio is absent, or no room to keep
            them.
    """
    shape, groups = data.input_shape, GROUPS if argument is None else int(argument)
    if len(shape) != 3 or min(shape[1:]) < LEAST_SIDE:
        raise UsageError(
            f"features is 'scattering', but records of {data.name} have shape {tuple(shape)}; it needs images "
            f"(channels, height, width) of {LEAST_SIDE} pixels a side or more: drop features"
        )
    maps = MAPS * shape[0]
    if maps % groups:
        raise UsageError(
            f"features is 'scattering:{groups}', but a record has {maps} maps; the number of groups must divide it"
        )
    transform = _transform(shape[1:])
    folder = cache_dir() / "features" / _digest(data, groups)
    try:
        if (found := _kept(folder)) is None:
            shutil.rmtree(folder, ignore_errors=True)
            _keep(folder, data, groups, transform, progress)
            found = _kept(folder)
    except OSError as error:
        raise UsageError(
            f"the features of {data.name} cannot be kept in {folder.parent} ({error.strerror or error}); make room "
            "there, or set XDG_CACHE_HOME to a folder that has it"
        ) from None
    if found is None:
        raise UsageError(
            f"the features of {data.name} are other ones in {folder} than were written there; check the disk"
        )
    train, test = found
    return replace(data, x_train=train, x_test=test, input_shape=tuple(train.shape[1:]))


def coefficients(images: Tensor, groups: int, transform: Any) -> Tensor:
    """Normalised maps of images, shape (m, C, H, W) -> (m, 81 C, H/4, W/4)."""
    from torch.nn.functional import group_norm

    maps = transform(images.contiguous()).flatten(1, 2)
    return group_norm(maps, groups)


def _transform(sides: tuple[int, ...]) -> Any:
    try:
        from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D
    except ImportError as error:
        raise UsageError(
            f"features is 'scattering', which needs kymatio ({error}): pip install 'optical-dfa[scattering]'"
        ) from None
    return ScatteringTorch2D(J=SCALES, shape=tuple(sides), L=DIRECTIONS)


def _digest(data: Dataset, groups: int) -> str:
    """Of everything that the coefficients depend on."""
    from importlib.metadata import version

    found = hashlib.sha256(repr((_FORM, version("kymatio"), groups)).encode())
    for x in (data.x_train, data.x_test):
        found.update(repr(tuple(x.shape)).encode())
        found.update(x.contiguous().numpy().data)
    return found.hexdigest()[:32]


def _kept(folder: Path) -> tuple[Tensor, Tensor] | None:
    """Training and test coefficients, mapped; None where there are none, or not those that were written."""
    import torch

    digests = folder / _DIGESTS
    if not digests.is_file():
        return None
    try:
        if json.loads(digests.read_text(encoding="utf-8")) != _digests(folder):
            return None
        train, test = (torch.from_numpy(np.load(folder / f"{part}.npy", mmap_mode="c")) for part in _PARTS)
    except (FileNotFoundError, ValueError):
        return None
    return train, test


def _digests(folder: Path) -> dict[str, str]:
    """Of the files of a folder, by their parts."""
    found = {}
    for part in _PARTS:
        with (folder / f"{part}.npy").open("rb") as file:
            found[part] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _keep(folder: Path, data: Dataset, groups: int, transform: Any, progress: bool) -> None:
    """Compute and write the coefficients; the folder is there once all of it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    unfinished.mkdir(exist_ok=True)
    try:
        total = len(data.x_train) + len(data.x_test)
        with _bar(f"scattering of {data.name}", total, progress) as advance:
            for part, x in zip(_PARTS, (data.x_train, data.x_test), strict=True):
                kept: Any = None
                for start in range(0, len(x), _TOGETHER):
                    found = coefficients(x[start : start + _TOGETHER], groups, transform).numpy()
                    if kept is None:
                        kept = np.lib.format.open_memmap(
                            unfinished / f"{part}.npy", "w+", np.float32, (len(x), *found.shape[1:])
                        )
                    kept[start : start + len(found)] = found
                    advance(len(found))
                kept.flush()
        (unfinished / _DIGESTS).write_text(json.dumps(_digests(unfinished)), encoding="utf-8")
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was there first
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _bar(title: str, total: int, progress: bool) -> Iterator[Callable[[int], None]]:
    """Gives what is told how many more records are done."""
    if not progress or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
