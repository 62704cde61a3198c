"""Label-free features against scikit-learn, and where they are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from noise_models.errors import UsageError
from optical_dfa.config import merge
from optical_dfa.data import load
from optical_dfa.data.features import with_features


def test_principal_components_are_scikit_learns() -> None:
    data = load("digits")
    found = with_features(data, "pca:10")
    fitted = PCA(10, svd_solver="full").fit(data.x_train.flatten(1).double().numpy())
    for x, reduced in ((data.x_train, found.x_train), (data.x_test, found.x_test)):
        expected = fitted.transform(x.flatten(1).double().numpy())
        scale = np.sqrt(np.mean(fitted.transform(data.x_train.flatten(1).double().numpy()) ** 2))
        signs = np.sign((expected * reduced.double().numpy()).sum(0))
        np.testing.assert_allclose(reduced.numpy(), signs * expected / scale, atol=1e-5)
    assert found.input_shape == (10,)
    assert float(found.x_train.square().mean()) == pytest.approx(1, abs=1e-5)
    assert any("principal axes" in sentence for sentence in found.public)


def test_labels_and_test_inputs_do_not_enter() -> None:
    data = load("digits")
    found = with_features(data, "pca:5")
    from dataclasses import replace

    other = with_features(replace(data, y_train=data.y_train.flip(0), x_test=data.x_test[:9]), "pca:5")
    assert torch.equal(found.x_train, other.x_train)
    torch.testing.assert_close(found.x_test[:9], other.x_test)


@pytest.mark.parametrize("spec", ["pca", "pca:", "pca:0", "pca:-1", "pca:x", "lda:3", "pca:³", "pca:65"])
def test_other_features_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="features is"):
        with_features(load("digits"), spec)


@pytest.mark.parametrize("release", ["digital", "dark-frame", "per-record"])
def test_releases_that_keep_inputs_private_refuse_them(release: str) -> None:
    with pytest.raises(UsageError, match=r"features is .pca:8.*private"):
        merge({}, {"features": "pca:8", "release": release})


@pytest.mark.parametrize("release", ["none", "label"])
def test_releases_with_public_inputs_take_them(release: str) -> None:
    assert merge({}, {"features": "pca:8", "release": release}).features == "pca:8"
