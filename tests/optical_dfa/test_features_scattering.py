"""Scattering features: functions of one record alone, kept once, refused where there are no images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.cli import main
from optical_dfa.config import merge
from optical_dfa.data.dataset import Dataset
from optical_dfa.data.features import scattering, with_features

kymatio = pytest.importorskip("kymatio")
MAPS = scattering.MAPS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scattering, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def images(count: int = 9, channels: int = 1, side: int = 16, seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count + 3, channels, side, side, generator=generator)
    y = torch.arange(count + 3) % 3
    return Dataset("pictures", x[:count], y[:count], x[count:], y[count:], 3, (channels, side, side))


def filtered(x: Tensor, side: int) -> Tensor:
    """Maps of the first two orders of images that fit the transform's grid, written out with kymatio's filters."""
    transform = scattering._transform((side, side))
    around = (transform._M_padded - side) // 2
    padded = torch.nn.functional.pad(x, 4 * [around], mode="reflect")
    spectrum = torch.fft.fft2(padded.double())
    phi = torch.as_tensor(transform.phi["levels"][0]).squeeze(-1).double()
    step, first = 4, around // 4

    def low(field: Tensor) -> Tensor:
        smooth = torch.fft.ifft2(torch.fft.fft2(field) * phi).real
        return smooth[..., ::step, ::step][..., first:-first, first:-first]

    found = [low(padded.double())]
    moduli = []
    for wave in transform.psi:
        psi = torch.as_tensor(wave["levels"][0]).squeeze(-1).double()
        moduli.append((wave["j"], torch.fft.ifft2(spectrum * psi).abs()))
    found += [low(modulus) for _, modulus in moduli]
    return torch.cat(found, 1)


def test_the_first_two_orders_are_their_equations() -> None:
    x = images(4, side=16).x_train
    transform = scattering._transform((16, 16))
    maps = transform(x).flatten(1, 2)
    assert maps.shape == (4, MAPS, 4, 4)
    expected = filtered(x, 16)
    # Larger wavelets are sampled on every second pixel before the modulus, which aliases a little.
    torch.testing.assert_close(maps[:, :9].double(), expected[:, :9], atol=2e-3, rtol=0)
    torch.testing.assert_close(maps[:, 9:17].double(), expected[:, 9:17], atol=2e-2, rtol=0)
    assert float(expected[:, 9:17].abs().mean()) > 2e-2  # so that the comparison can fail


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_of_one_record_alone(channels: int) -> None:
    data = images(channels=channels)
    found = with_features(data, "scattering:27")
    assert found.x_train.shape == (9, MAPS * channels, 4, 4) == (9, *found.input_shape)
    alone = with_features(
        replace(data, x_train=data.x_train[5:6], y_train=data.y_train[5:6]), "scattering:27"
    )
    torch.testing.assert_close(alone.x_train[0], found.x_train[5], rtol=1e-4, atol=1e-4)
    assert found.public == data.public  # nothing is read off the records
    groups = found.x_train.reshape(9, 27, -1)
    torch.testing.assert_close(groups.mean(2), torch.zeros(9, 27), atol=1e-4, rtol=0)
    assert float(groups.square().mean(2).max()) <= 1 + 1e-4


def test_a_blank_image_has_finite_features() -> None:
    data = images()
    data.x_train[0] = 0
    assert torch.isfinite(with_features(data, "scattering").x_train).all()


def test_features_are_computed_once_and_mapped(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = images()
    found = with_features(data, "scattering")
    (kept,) = (cache / "features").iterdir()
    assert np.array_equal(np.load(kept / "train.npy"), found.x_train.numpy())
    monkeypatch.setattr(scattering, "coefficients", None)  # not called again
    assert torch.equal(with_features(data, "scattering").x_train, found.x_train)
    changed = replace(data, x_train=data.x_train + 1e-3)
    for other, spec in ((changed, "scattering"), (data, "scattering:81")):
        with pytest.raises(TypeError):
            with_features(other, spec)


def test_what_is_interrupted_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(scattering, "coefficients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        with_features(images(), "scattering")
    assert list((cache / "features").iterdir()) == []


def test_no_room_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(scattering, "cache_dir", lambda: tmp_path / "file")
    with pytest.raises(UsageError, match=r"cannot be kept in .*make room"):
        with_features(images(), "scattering")


@pytest.mark.parametrize(
    ("spec", "data", "said"),
    [
        ("scattering:", images(), "it must be"),
        ("scattering:0", images(), "it must be"),
        ("scattering:x", images(), "it must be"),
        ("scattering:10", images(), "81 maps"),
        ("scattering", replace(images(), input_shape=(256,)), "needs images"),
        ("scattering", images(side=4), "of 8 pixels"),
    ],
)
def test_what_cannot_be_is_refused(spec: str, data: Dataset, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        with_features(data, spec)


def test_releases_that_keep_inputs_private_take_them() -> None:
    for release in ("digital", "dark-frame", "label"):
        assert merge({}, {"features": "scattering", "release": release}).features == "scattering"


def test_a_private_run_on_features_audits(tmp_path: Path) -> None:
    out = tmp_path / "run"
    network = ["--features", "scattering", "--model", "mlp:8", "--release", "digital", "--backend", "digital"]
    assert main(["train", *network, "--epsilon", "3", "--epochs", "1", "--out", str(out)]) == 0
    # Digits have 8 pixels a side, which makes grids of 2.
    assert json.loads((out / "summary.json").read_text())["parameters"] == 8 * MAPS * 4 + 8 + 8 * 10 + 10
    assert main(["audit", str(out)]) == 0
