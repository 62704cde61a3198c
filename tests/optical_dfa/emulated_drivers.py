"""A stand-in for the drivers of a LightOn OPU, so that lightonml's hardware branch runs where there is no hardware.

Written for these tests from what lightonml 1.4.3 calls: `internal.device.OpuDevice`, `linear_reconstruction` and
`formatting_v2.Formatter`. It says nothing about how the real drivers work inside.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

MIRRORS = (32, 24)
PIXELS = (48, 40)

_DEVICE = '''
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

OPEN = []  # devices that hold the hardware now


class OpuDevice:
    """A mirror array, a complex Gaussian medium and an 8-bit camera."""

    input_shape = {mirrors}
    output_shape_max = {pixels}
    output_roi_strategy = SimpleNamespace(value=2)  # a square in the middle
    output_dtype = np.uint8
    output_readout_us = 100
    gain_dB = 0.0

    def __init__(self, opu_type, frametime_us, exposure_us, seq_nb_prelim, output_roi, verbose, name):
        self.frametime_us, self.exposure_us, self.name = frametime_us, exposure_us, name
        self.output_roi = ((0, 0), self.output_shape_max)
        self.active = False
        self.acq_state = SimpleNamespace(value=1)
        rng = np.random.default_rng(7)
        size = (int(np.prod(self.output_shape_max)), int(np.prod(self.input_shape)))
        self.medium = (rng.standard_normal(size) + 1j * rng.standard_normal(size)) / np.sqrt(2 * size[1])
        self.noise = np.random.default_rng(8)
        self.shown = 0
        self.fail_after = None

    @property
    def output_shape(self):
        return self.output_roi[1]

    def open(self):
        self.active = True
        OPEN.append(self)

    def close(self):
        self.active = False
        if self in OPEN:
            OPEN.remove(self)

    def reserve(self, n_images):
        pass

    @contextmanager
    def acquiring(self, n_images=0, online=False):
        self.acq_state = SimpleNamespace(value=2)
        try:
            yield
        finally:
            self.acq_state = SimpleNamespace(value=1)

    def transform1(self, packed):
        assert self.active and self.acq_state.value == 2
        assert packed.dtype == np.uint8 and packed.shape[1] * 8 == self.medium.shape[1]
        self.shown += len(packed)
        if self.fail_after is not None and self.shown > self.fail_after:
            raise RuntimeError("camera timeout\\nat frame %d" % self.shown)
        mirrors = np.unpackbits(packed, axis=1, bitorder="little")
        light = np.abs(mirrors @ self.medium.T) ** 2 * self.exposure_us / 10.0
        codes = light + 3.0 + 0.3 * self.noise.standard_normal(light.shape)
        return np.clip(np.rint(codes), 0, 255).astype(np.uint8)

    def transform2(self, packed, out, index):
        out[:] = self.transform1(packed)[:, : out.shape[1]]

    def versions(self):
        return "emulated device " + self.name
'''

_RECONSTRUCTION = '''
import numpy as np


def init(mirrors):
    assert mirrors > 0


def encode_batch(x):
    """The frame of ones, then every vector and its complement."""
    frames = np.empty((2 * len(x) + 1, x.shape[1]), dtype=np.uint8)
    frames[0], frames[1::2], frames[2::2] = 1, x, 1 - x
    return frames


def decode_batch(images):
    """Re(conj(M 1) M x) = (|M x|^2 + |M 1|^2 - |M (1 - x)|^2) / 2."""
    images = np.asarray(images, dtype=np.float32)
    return (images[1::2] + images[0] - images[2::2]) / 2
'''

_FORMATTING = """
import numpy as np


class Formatter:
    def __init__(self, shape):
        self.mirrors = int(np.prod(shape))

    def define_lined_mapping(self, n_features, roi_size, roi_offset):
        self.lined_factor = int(np.prod(roi_size)) // int(np.prod(n_features))

    def apply_format(self, source, target, n_features, reverse_bits):
        bits = np.unpackbits(source, axis=-1, count=int(n_features))
        wide = np.repeat(bits, self.lined_factor, axis=-1)
        rest = [(0, 0)] * (wide.ndim - 1) + [(0, self.mirrors - wide.shape[-1])]
        target[:] = np.packbits(np.pad(wide, rest), axis=-1, bitorder="little" if reverse_bits else "big")
"""


def build(folder: Path, *, version: str = "1.4.1", exposure_us: int = 400, pass_size: int = 100) -> Path:
    """Put the package `lightonopu` into `folder`, which the caller puts on sys.path.

    Returns:
        lightonml's device configuration.
    """
    package = folder / "lightonopu"
    (package / "internal").mkdir(parents=True)
    values = {"{mirrors}": str(MIRRORS), "{pixels}": str(PIXELS)}
    device = _DEVICE
    for key, value in values.items():
        device = device.replace(key, value)
    for name, text in {
        "__init__.py": f"__version__ = {version!r}",
        "internal/__init__.py": "",
        "internal/device.py": device,
        "linear_reconstruction.py": _RECONSTRUCTION,
        "formatting_v2.py": _FORMATTING,
    }.items():
        (package / name).write_text(textwrap.dedent(text))
    info = folder / f"lightonopu-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lightonopu\nVersion: {version}\n")
    config: dict[str, Any] = {
        "type": "emulated", "name": "bench", "version": "1", "location": "test",
        "input": {"frametime_us": 500}, "output": {"exposure_us": exposure_us},
        "ones_range": [1, MIRRORS[0] * MIRRORS[1]], "n_samples_by_pass": pass_size,
    }  # fmt: skip
    path = folder / "opu.json"
    path.write_text(json.dumps(config))
    return path
