"""Data of one's own in an .npz file: what is taken, how it is scaled, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noise_models.errors import UsageError
from optical_dfa.data import load
from optical_dfa.data.features import with_features
from optical_dfa.data.npz import load_npz


def arrays(**changed: Any) -> dict[str, Any]:
    """A small good file's arrays, with some replaced; None leaves one out."""
    rng = np.random.default_rng(1)
    good: dict[str, Any] = {
        "x_train": rng.normal(size=(20, 5)),
        "y_train": np.arange(20) % 3,
        "x_test": rng.normal(size=(7, 5)),
        "y_test": np.arange(7) % 3,
    }
    return {name: value for name, value in (good | changed).items() if value is not None}


def saved(folder: Path, **changed: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays(**changed))
    return path


def test_float_table_is_left_alone(tmp_path: Path) -> None:
    data = load(str(saved(tmp_path)))
    assert data.x_train.dtype == torch.float32
    np.testing.assert_array_equal(data.x_train.numpy(), arrays()["x_train"].astype(np.float32))
    np.testing.assert_array_equal(data.y_test.numpy(), arrays()["y_test"])
    assert (data.classes, data.input_shape) == (3, (5,))
    assert len(data.public) == 1
    assert "3" in data.public[0]


def test_classes_can_be_declared(tmp_path: Path) -> None:
    data = load_npz(saved(tmp_path, classes=12))
    assert (data.classes, data.public) == (12, ())


@pytest.mark.parametrize(
    ("train", "test", "shape", "is_pixels"),
    [
        (np.full((20, 4, 6), 255, np.uint8), np.zeros((7, 4, 6), np.uint8), (1, 4, 6), True),
        (np.full((20, 3, 4, 6), 255, np.int64), np.zeros((7, 3, 4, 6), np.int64), (3, 4, 6), True),
        (np.full((20, 9), 255, np.uint8), np.zeros((7, 9), np.uint8), (9,), True),
        (np.full((20, 9), 255, np.int16), np.zeros((7, 9), np.int16), (9,), False),
        (np.full((20, 4, 6), 255.0), np.zeros((7, 4, 6)), (1, 4, 6), False),
    ],
)
def test_which_arrays_are_pixels(
    tmp_path: Path, train: Any, test: Any, shape: tuple[int, ...], is_pixels: bool
) -> None:
    data = load_npz(saved(tmp_path, x_train=train, x_test=test))
    assert data.input_shape == shape
    assert data.x_train.unique().tolist() == ([1.0] if is_pixels else [255.0])
    assert data.x_test.unique().tolist() == ([-1.0] if is_pixels else [0.0])


@pytest.mark.parametrize(
    ("most", "dtype", "shape", "noted"),
    [
        (1, np.uint8, (9,), True), (15, np.uint8, (4, 6), True), (127, np.int64, (4, 6), True),
        (0, np.uint8, (9,), True), (128, np.uint8, (9,), False), (255, np.int64, (4, 6), False),
        (15, np.int16, (9,), False), (101, np.int16, (9,), True), (101.0, np.float32, (4, 6), True),
        (100.0, np.float64, (9,), False),
        (1.0, np.float32, (9,), False),
    ],
)  # fmt: skip
def test_a_scale_that_teaches_little_is_said_in_one_line(
    most: float,
    dtype: Any,
    shape: tuple[int, ...],
    noted: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The line is read off the test set, which is public, and not off the training records."""
    test = np.full((7, *shape), most, dtype)
    for train in (np.zeros((20, *shape), dtype), np.full((20, *shape), 100, dtype)):
        load_npz(saved(tmp_path, x_train=train, x_test=test))
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == said.err.count("note: x_test of ") == int(noted)
        assert str(int(most)) in said.err or not noted


def test_categories_are_no_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = np.array([[500, 0.5], [3, -0.5]])
    for numeric, noted in ((1.0, 0), (1000.0, 1)):
        scaled = table * [1, numeric]
        changed = {"x_train": scaled, "x_test": scaled, "y_train": np.arange(2), "y_test": np.arange(2)}
        load_npz(saved(tmp_path, **changed, cardinalities=np.array([1000, 0])))
        assert capsys.readouterr().err.count("note: ") == noted
    whole = {"x_train": table[:, :1], "x_test": table[:, :1], "y_train": np.arange(2), "y_test": np.arange(2)}
    load_npz(saved(tmp_path, **whole, cardinalities=np.array([1000])))
    assert capsys.readouterr().err == ""


TYPES = [np.uint8, np.int8, np.uint16, np.int64, np.float16, np.float32, np.float64, bool]


@pytest.mark.parametrize("shape", [(9,), (4, 6), (3, 4, 6)], ids=str)
@pytest.mark.parametrize("second", TYPES)
@pytest.mark.parametrize("first", TYPES)
def test_equal_records_of_two_types_become_equal_inputs_or_are_refused(
    tmp_path: Path, first: Any, second: Any, shape: tuple[int, ...]
) -> None:
    """The same records under two types: never scaled in one array and not in the other."""
    records = np.resize(np.arange(2), (7, *shape))
    path = saved(
        tmp_path,
        x_train=records.astype(first),
        x_test=records.astype(second),
        y_train=np.arange(7) % 3,
        y_test=np.arange(7) % 3,
    )
    kinds = [np.dtype(t).kind for t in (first, second)]
    whole = [kind in "ui" for kind in kinds]
    pixels = [t == np.uint8 or (w and len(shape) > 1) for t, w in zip((first, second), whole, strict=True)]
    if "b" in kinds or whole[0] != whole[1] or pixels[0] != pixels[1]:
        with pytest.raises(UsageError, match=r"correct the file|must be integers") as caught:
            load_npz(path)
        assert "\n" not in str(caught.value)
    else:
        data = load_npz(path)
        assert torch.equal(data.x_train, data.x_test)


def test_the_types_decide_and_not_the_values(tmp_path: Path) -> None:
    """Whether a table of whole numbers is scaled does not turn on a private record."""
    small, large = np.zeros((20, 5), np.int64), np.full((20, 5), 255, np.int64)
    for x in (small, large):
        assert torch.equal(
            load_npz(saved(tmp_path, x_train=x, x_test=x[:7])).x_train, torch.from_numpy(x).float()
        )


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(20) % 3 * 1.0,
        np.array(["0", "1"] * 10),
        np.array([b"0", b"1"] * 10),
        np.eye(3)[np.arange(20) % 3],
        np.eye(3, dtype=int)[np.arange(20) % 3],
        np.arange(20) % 2 == 0,
        np.full(20, np.nan),
        np.arange(20) % 3 - 2,
        np.datetime64("2020-01-01") + np.arange(20),
    ],
    ids=["float", "text", "bytes", "one-hot", "one-hot int", "bool", "nan", "negative", "dates"],
)
def test_labels_that_are_no_numbers_of_classes_are_refused_in_one_line(tmp_path: Path, labels: Any) -> None:
    with pytest.raises(UsageError, match="y_train") as caught:
        load_npz(saved(tmp_path, y_train=labels))
    assert "\n" not in str(caught.value)


def test_a_class_that_only_the_test_set_has_counts(tmp_path: Path) -> None:
    assert load_npz(saved(tmp_path, y_train=np.arange(20) % 2)).classes == 3


def test_categorical_columns_are_kept_and_not_scaled(tmp_path: Path) -> None:
    x = np.tile(np.arange(20, dtype=np.uint8)[:, None], (1, 2))
    data = load_npz(saved(tmp_path, x_train=x, x_test=x[:7], cardinalities=np.array([20, 0])))
    assert data.cardinalities == (20, 0)
    assert torch.equal(data.x_train, torch.arange(20.0)[:, None].expand(20, 2))
    assert load_npz(saved(tmp_path, cardinalities=np.zeros(5, int))).cardinalities == ()
    assert with_features(data, "pca:1").cardinalities == ()  # what columns meant is lost


def test_the_largest_category_is_exact(tmp_path: Path) -> None:
    x = np.array([[0.0], [2**24 - 1], [2**24 - 2]])
    y = np.array([0, 1, 1])
    data = load_npz(saved(tmp_path, x_train=x, x_test=x, y_train=y, y_test=y, cardinalities=[2**24]))
    assert data.x_train.long().tolist() == [[0], [2**24 - 1], [2**24 - 2]]


@given(record=st.lists(st.floats(-1e3, 1e3, width=32), min_size=5, max_size=5))
def test_a_record_does_not_move_the_others(
    tmp_path_factory: pytest.TempPathFactory, record: list[float]
) -> None:
    """No statistic of the records is used: replacing one leaves every other as it was (docs/threat-model.md)."""
    folder = tmp_path_factory.mktemp("npz")
    before = load_npz(saved(folder))
    x = arrays()["x_train"].copy()
    x[3] = record
    after = load_npz(saved(folder, x_train=x))
    others = torch.arange(20) != 3
    assert torch.equal(before.x_train[others], after.x_train[others])
    assert torch.equal(before.x_test, after.x_test)


BAD_X = arrays()["x_train"].copy()
BAD_X[3, 2] = np.nan
BAD_CATEGORY = np.zeros((20, 5))
BAD_CATEGORY[7, 0] = 3
HUGE_X = arrays()["x_train"].copy()
HUGE_X[3, 2] = 1e300


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x_test": None}, ["no array x_test"]),
        ({"y_train": None}, ["no array y_train"]),
        ({"x_train": BAD_X}, ["x_train", "not finite"]),
        ({"x_train": HUGE_X}, ["x_train", "not finite"]),
        ({"x_test": np.full((7, 5), -np.inf)}, ["x_test", "not finite"]),
        ({"x_train": np.zeros((0, 5)), "y_train": np.zeros(0, int)}, ["x_train", "(0, 5)"]),
        ({"x_test": np.zeros((0, 5)), "y_test": np.zeros(0, int)}, ["x_test", "(0, 5)"]),
        ({"x_train": np.zeros((20, 0)), "x_test": np.zeros((7, 0))}, ["x_train", "(20, 0)"]),
        ({"x_train": np.zeros(20)}, ["x_train", "(20,)"]),
        ({"x_test": np.zeros((7, 6))}, ["(5,)", "(6,)", "equal"]),
        ({"x_test": np.zeros((7, 5), np.uint8)}, ["float64", "uint8"]),
        ({"y_train": np.arange(19) % 3}, ["y_train", "(19,)", "(20,)"]),
        ({"y_test": np.zeros((7, 1), int)}, ["y_test", "(7, 1)"]),
        ({"y_train": np.arange(20) % 3 + 0.5}, ["y_train", "float64", "integers"]),
        ({"y_train": np.array(["a"] * 20)}, ["y_train", "integers"]),
        ({"y_train": np.arange(20) % 3 - 1}, ["y_train", "label -1"]),
        ({"y_test": np.full(7, 3), "classes": 3}, ["y_test", "label 3", "0 ... 2"]),
        ({"y_test": np.full(7, 2**40)}, ["labels up to", "65536"]),
        ({"y_test": np.full(7, 2**64 - 1, np.uint64)}, ["labels up to", "65536"]),
        ({"y_train": np.zeros(20, int), "y_test": np.zeros(7, int)}, ["labels up to 0", "2 to"]),
        ({"cardinalities": [3, 0, 0, 0]}, ["cardinalities", "(4,)", "5 columns"]),
        ({"cardinalities": [3.0, 0, 0, 0, 0]}, ["cardinalities", "float64", "whole number"]),
        ({"cardinalities": [-1, 0, 0, 0, 0]}, ["cardinalities", "-1", "0 (numeric)"]),
        ({"cardinalities": [2**24 + 1, 0, 0, 0, 0]}, ["cardinalities", "16777217", "16777216"]),
        ({"cardinalities": [3, 0, 0, 0, 0]}, ["x_train", "column 0", "3 categories", "0 ... 2"]),
        (
            {"cardinalities": [3, 0, 0, 0, 0], "x_train": BAD_CATEGORY},
            ["has 3.0 in column 0", "3 categories"],
        ),
        (
            {"cardinalities": [0, 0, 9, 0, 0], "x_train": np.full((20, 5), np.nan)},
            ["has nan in column 2", "9 categories"],
        ),
        (
            {"cardinalities": [4], "x_train": np.zeros((20, 1)), "x_test": np.full((7, 1), -1)},
            ["x_test", "has -1 in column 0", "4 categories"],
        ),
        (
            {"cardinalities": [4], "x_train": np.zeros((20, 1, 2)), "x_test": np.zeros((7, 1, 2))},
            ["cardinalities", "tables"],
        ),
        ({"classes": 1}, ["classes", "2 to"]),
        ({"classes": 3.0}, ["classes", "whole number"]),
        ({"x_train": np.array([[object()] * 5] * 20)}, ["cannot be read"]),
        ({"x_train": np.zeros((20, 5), complex)}, ["complex128"]),
        ({"x_train": np.zeros((20, 5), bool)}, ["bool"]),
        ({"x_train": np.full((20, 4, 6), 256), "x_test": np.zeros((7, 4, 6), int)}, ["256", "0 ... 255"]),
        ({"x_train": np.full((20, 4, 6), -1), "x_test": np.zeros((7, 4, 6), int)}, ["-1", "0 ... 255"]),
        ({"x_train": np.zeros((20, 8, 8, 3)), "x_test": np.zeros((7, 8, 8, 3))}, ["channels come first"]),
    ],
)
def test_bad_arrays(tmp_path: Path, changed: dict[str, Any], words: list[str]) -> None:
    path = saved(tmp_path, **changed)
    with pytest.raises(UsageError) as caught:
        load_npz(path)
    text = str(caught.value)
    assert "\n" not in text
    for word in [str(path), *words]:
        assert word in text


def test_not_an_npz(tmp_path: Path) -> None:
    text, folder, cut, empty, npy = (
        tmp_path / f"{name}.npz" for name in ("text", "folder", "cut", "empty", "npy")
    )
    text.write_text("x_train,y_train\n")
    folder.mkdir()
    cut.write_bytes(saved(tmp_path).read_bytes()[:-100])
    empty.write_bytes(b"")
    with npy.open("wb") as file:
        np.save(file, np.zeros(3))
    for path, word in (
        (text, "no .npz file"),
        (folder, "is a folder"),
        (cut, "no .npz file"),
        (empty, "no .npz file"),
        (npy, "no .npz file"),
        (tmp_path / "absent.npz", "does not exist"),
    ):
        with pytest.raises(UsageError, match=word) as caught:
            load(str(path))
        assert "\n" not in str(caught.value)


def test_damaged_member(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[200:400] = b"\xff" * 200  # within x_train: the checksum of the member fails
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        load_npz(path)


def test_a_member_that_is_encrypted_or_packed_in_an_unknown_way_is_one_line(tmp_path: Path) -> None:
    content = saved(tmp_path).read_bytes()
    for name, at, value in (
        ("locked", 6, 1),
        ("packed", 8, 99),
    ):  # fields of a zip's local and central headers
        damaged = bytearray(content)
        for magic, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
            start = damaged.find(magic)
            while start >= 0:
                damaged[start + at + shift] = value
                start = damaged.find(magic, start + 1)
        path = tmp_path / f"{name}.npz"
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="cannot be read") as caught:
            load_npz(path)
        assert "\n" not in str(caught.value)
