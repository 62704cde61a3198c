"""Data of one's own: an .npz file with x_train, y_train, x_test, y_test and, if wanted, classes, cardinalities."""

from __future__ import annotations

import lzma
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.data.card import DatasetCard
from optical_dfa.data.dataset import Dataset, check_labels

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("classes", "cardinalities")
MAX_CLASSES = 65536
MAX_CARDINALITY = 2**24  # float32 has every whole number up to there
DIM = 127  # no pixel above half of full white
MOST_INPUT = 100.0  # of a table or of images that are used as they are
_NUMBERS = 1 << 24  # looked at at a time
# Pixels become (x/255 - 1/2) / (1/2).
HALF = 127.5


@DatasetCard(
    summary="arrays x_train, y_train, x_test and y_test of one's own",
    private={"batch_size": 256, "epochs": 40, "lr": 0.15, "max_grad_norm": 1.0, "epsilon": 8.0},
    plain={"batch_size": 128, "epochs": 10, "lr": 0.05},
    by_records=True,
)
def load_npz(path: Path) -> Dataset:
    """The records of an .npz file.

    x_train and x_test have shape (N, ...): tables (N, features), or images (N, H, W) or (N, C, H, W),
    channels first. uint8 arrays of any shape, and images of another integer type in 0 ... 255, are pixels:
    they become (x/255 - 1/2)/(1/2). Everything else is used as it is: scale it beforehand, by constants that
    do not come from private records. Types and shapes alone decide, never values, and decide alike for both arrays,
    or the file is refused. Where inputs so scaled will probably teach little, one line on standard error says so, read
    off x_test, which is public. y_train, y_test have shape (N,) and integer labels from 0; `classes` is
    their number. Where it is absent the largest label decides, which declares that number public.

    `cardinalities` makes columns of a table categorical: one whole number a column, its number of categories,
    or 0 where it is numeric. Nothing of such a table is scaled. These numbers are public: give those that there are,
    not those that occur in the records.

    Raises:
        UsageError: one line: what is wrong with which array.
    """
    return of_arrays(_read(path.expanduser()), path)


def of_arrays(arrays: Mapping[str, NDArray[np.generic]], path: Path) -> Dataset:
    """The records of arrays by name, as `load_npz` takes them. Arrays of float32 are not copied.

    Args:
        arrays: those of `REQUIRED`, and of `OPTIONAL` if they are there.
        path: where they are from, for messages.
    """
    for name in REQUIRED:
        if name not in arrays:
            raise UsageError(f"{path} has no array {name}; it must have {', '.join(REQUIRED)}: add it")
    cardinalities = _cardinalities(arrays, path)
    pixels = not cardinalities and _pixels(arrays["x_train"], arrays["x_test"], path)
    x_train, x_test = (
        _records(arrays[name], f"{name} of {path}", cardinalities, pixels=pixels)
        for name in ("x_train", "x_test")
    )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UsageError(
            f"{path} has records of shape {tuple(x_train.shape[1:])} in x_train "
            f"and {tuple(x_test.shape[1:])} in x_test; they must be equal: correct the file"
        )
    for x, name in ((x_train, "y_train"), (x_test, "y_test")):
        labels = arrays[name]
        if labels.dtype.kind not in "ui" or labels.shape != (len(x),):
            raise UsageError(
                f"{name} of {path} is {labels.dtype} of shape {labels.shape}; "
                f"it must be integers of shape ({len(x)},), one label a record: correct the file"
            )
    classes, public = _classes(arrays, path)
    y_train, y_test = (
        check_labels(arrays[name], classes, f"{name} of {path}") for name in ("y_train", "y_test")
    )
    shape = tuple(x_train.shape[1:])
    numeric = x_test[:, [not entries for entries in cardinalities]] if cardinalities else x_test
    if (note := _out_of_scale(arrays["x_test"], numeric, f"x_test of {path}", pixels=pixels)) is not None:
        print(note, file=sys.stderr)
    return Dataset(str(path), x_train, y_train, x_test, y_test, classes, shape, public, cardinalities)


# What numpy and zipfile raise of a file that is damaged, encrypted, or packed in a way they do not know.
DAMAGED = (
    OSError, ValueError, EOFError, LookupError, ArithmeticError, RuntimeError, TypeError, SyntaxError, struct.error,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{path} {kind}; give the path of an .npz file")
    try:
        with path.open("rb"):  # is_zipfile() would not say that it cannot be read
            pass
        # A plain .npy would come back as an array: it has no names.
        if not zipfile.is_zipfile(path):
            raise UsageError(f"{path} is no .npz file; write it with numpy.savez")
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in (*REQUIRED, *OPTIONAL) if name in stored}
    except UsageError:
        raise
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"{path} cannot be read ({reason}); write it with numpy.savez, numbers only"
        ) from None


def _pixels(train: NDArray[np.generic], test: NDArray[np.generic], path: Path) -> bool:
    """Whether both arrays are pixels, 0 ... 255.

    Raises:
        UsageError: one is and the other is not, or one is of whole numbers and the other is not.
    """
    whole = [x.dtype.kind in "ui" for x in (train, test)]
    pixels = [x.dtype == np.uint8 or (x.dtype.kind in "ui" and x.ndim in (3, 4)) for x in (train, test)]
    if whole[0] != whole[1] or pixels[0] != pixels[1]:
        raise UsageError(
            f"{path} has {train.dtype} x_train and {test.dtype} x_test, which would be scaled differently (pixels are "
            "scaled, other numbers are not); store both in one type: correct the file"
        )
    return pixels[0]


def _records(x: NDArray[np.generic], what: str, cardinalities: tuple[int, ...], *, pixels: bool) -> Tensor:
    if x.dtype.kind not in "uif":
        raise UsageError(f"{what} is of type {x.dtype}; it must be integers or floating-point numbers")
    if x.ndim < 2 or 0 in x.shape:
        raise UsageError(f"{what} has shape {x.shape}; it must be (records, ...) with 1 or more of each")
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise UsageError(f"{what} has shape {x.shape}; channels come first: use x.transpose(0, 3, 1, 2)")
    if x.ndim == 3:
        x = x[:, None]
    _check_categories(x, what, cardinalities)
    if pixels and (x.min() < 0 or x.max() > 255):
        raise UsageError(f"{what} has pixels from {x.min()} to {x.max()}; they must be 0 ... 255, or floats")
    with np.errstate(over="ignore"):  # too large for float32: refused below
        out = torch.from_numpy(x.astype(np.float32, copy=False))
    if pixels:
        out.div_(HALF).sub_(1.0)
    rows = max(1, _NUMBERS // max(1, out[0].numel()))
    if not all(bool(torch.isfinite(part).all()) for part in torch.split(out, rows)):
        raise UsageError(
            f"{what} has values that are not finite (NaN, infinite or beyond float32): correct the file"
        )
    return out


def _out_of_scale(stored: NDArray[np.generic], x: Tensor, what: str, *, pixels: bool) -> str | None:
    """One line where the public records lie far from the scale that networks are initialised for; None elsewhere."""
    if pixels and (most := int(stored.max())) <= DIM:
        return (
            f"note: {what} is {stored.dtype} up to {most}, taken for pixels 0 ... 255, so inputs lie between -1 and "
            f"{float(x.max()):.2g} and will teach little; store x_train and x_test as floats, x / {most or 1} say"
        )
    if not pixels and x.numel() and (largest := float(x.abs().max())) > MOST_INPUT:
        return (
            f"note: {what} has inputs up to {largest:.3g}, used as they are, and networks will probably learn little "
            "from them; scale x_train and x_test alike beforehand, by public constants"
        )
    return None


def _cardinalities(arrays: Mapping[str, NDArray[np.generic]], path: Path) -> tuple[int, ...]:
    """Those of the file, checked against the shape of its records; empty where no column is categorical."""
    if "cardinalities" not in arrays:
        return ()
    stored, records = arrays["cardinalities"], arrays["x_train"]
    if records.ndim != 2:
        raise UsageError(
            f"{path} has cardinalities for records of shape {records.shape[1:]}; they are for tables "
            "(records, columns): leave them out"
        )
    if stored.dtype.kind not in "ui" or stored.shape != records.shape[1:]:
        raise UsageError(
            f"cardinalities of {path} is {stored.dtype} of shape {stored.shape}; it must be one whole number for each "
            f"of the {records.shape[1]} columns, 0 for a numeric one: correct it"
        )
    counts: list[int] = stored.tolist()
    wrong = [count for count in counts if not 0 <= count <= MAX_CARDINALITY]
    if wrong:
        raise UsageError(
            f"cardinalities of {path} has {wrong[0]}; they must be 0 (numeric) or a number of categories up to "
            f"{MAX_CARDINALITY}: correct it"
        )
    return tuple(counts) if any(counts) else ()


def _check_categories(x: NDArray[np.generic], what: str, cardinalities: tuple[int, ...]) -> None:
    """Every categorical column of `x` has whole numbers in 0 ... cardinality - 1."""
    if len(cardinalities) != x.shape[1]:
        return  # none; or refused for its shape
    for column, entries in enumerate(cardinalities):
        if not entries:
            continue
        found = x[:, column].astype(np.float64)
        outside = x[:, column][~((found >= 0) & (found < entries) & (found == np.floor(found)))]
        if outside.size:
            raise UsageError(
                f"{what} has {outside[0]} in column {column}, which has {entries} categories; they must be whole "
                f"numbers 0 ... {entries - 1}: correct the file"
            )


def _classes(arrays: Mapping[str, NDArray[np.generic]], path: Path) -> tuple[int, tuple[str, ...]]:
    if "classes" in arrays:
        stored = arrays["classes"]
        if stored.shape != () or stored.dtype.kind not in "ui" or not 2 <= int(stored) <= MAX_CLASSES:
            raise UsageError(
                f"classes of {path} must be one whole number from 2 to {MAX_CLASSES}: correct it"
            )
        return int(stored), ()
    largest = max(int(arrays["y_train"].max()), int(arrays["y_test"].max()))
    if not 1 <= largest < MAX_CLASSES:
        raise UsageError(
            f"{path} has labels up to {largest}; they must be 0 ... classes - 1 "
            f"with 2 to {MAX_CLASSES} classes: correct the file"
        )
    return largest + 1, (
        f"the number of classes, {largest + 1}, was read off the labels and is declared public",
    )
