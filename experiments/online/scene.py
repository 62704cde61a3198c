"""Synthetic streams to track in: a textured disc that moves, turns and changes over a cluttered background.

All by one seed. The target's texture turns into another one in the course of the stream, the light changes in strength
and direction, the camera is noisy, and other discs with textures of the same kind cross its way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from noise_models.randomness.generator import derive_seed

SIDE = 96  # pixels of a frame
BOX = 20  # pixels of the target's square box
DISTRACTORS = 3
NOISE = 0.03
SPEED, AGITATION = 2.0, 0.6  # pixels a frame; and a frame's change of velocity


@dataclass(frozen=True)
class Stream:
    """One stream.

    Attributes:
        frames: shape (T, SIDE, SIDE), grey levels about 0 to 1.
        boxes: the target's top left corners (row, column), shape (T, 2), pixels.
    """

    frames: Tensor
    boxes: Tensor


def make_stream(seed: int, length: int) -> Stream:
    """The stream of `seed`, so many frames long."""
    draws = torch.Generator().manual_seed(derive_seed(seed, "tracking stream"))
    image = _texture(SIDE, 12, draws).expand(length, 1, SIDE, SIDE)
    time = torch.linspace(0, 1, length)
    for number in range(DISTRACTORS + 1):  # the target last, above the others
        centres = _path(length, draws)
        first, last = (_texture(BOX, 4, draws) for _ in range(2))
        # Distractors keep their looks.
        weight = time if number == DISTRACTORS else torch.zeros(length)
        skin = first + weight.view(-1, 1, 1, 1) * (last - first)
        turn = torch.rand((), generator=draws) * 2 * math.pi + torch.randn((), generator=draws) * 3 * time
        image = _paint(image, skin, centres, turn)
    light = 1 + 0.35 * torch.sin(2 * math.pi * (torch.rand((), generator=draws) + 1.5 * time))
    slope = 0.4 * torch.randn(2, generator=draws)
    across = torch.linspace(-0.5, 0.5, SIDE)
    shade = 1 + time.view(-1, 1, 1) * (slope[0] * across[:, None] + slope[1] * across)
    frames = image[:, 0] * light.view(-1, 1, 1) * shade
    frames = frames + NOISE * torch.randn(frames.shape, generator=draws)
    return Stream(frames, centres - BOX / 2)


def _texture(side: int, cells: int, draws: torch.Generator) -> Tensor:
    """Random grey levels at two scales, shape (1, 1, side, side), about 0 to 1."""
    coarse, fine = (torch.rand(1, 1, n, n, generator=draws) for n in (cells, 2 * cells))
    size = {"size": (side, side), "mode": "bilinear", "align_corners": False}
    return 0.6 * interpolate(coarse, **size) + 0.4 * interpolate(fine, **size)  # type: ignore[arg-type]


def _path(length: int, draws: torch.Generator) -> Tensor:
    """Centres (row, column) of a smooth random walk that turns back at the border, shape (length, 2)."""
    low, high = BOX / 2 + 1, SIDE - BOX / 2 - 1
    place = low + (high - low) * torch.rand(2, generator=draws)
    angle = 2 * math.pi * torch.rand((), generator=draws)
    speed = SPEED * torch.stack([torch.cos(angle), torch.sin(angle)])
    places = []
    for _ in range(length):
        places.append(place.clone())
        speed = speed + AGITATION * torch.randn(2, generator=draws)
        speed = speed * min(1.0, 1.5 * SPEED / float(speed.norm()))
        place = place + speed
        out = (place < low) | (place > high)
        speed = torch.where(out, -speed, speed)
        place = place.clamp(low, high)
    return torch.stack(places)


def _paint(image: Tensor, skin: Tensor, centres: Tensor, turn: Tensor) -> Tensor:
    """Discs with these skins over the frames, turned by `turn` radians. Pixel centres are at whole numbers + 1/2."""
    scale = SIDE / BOX
    row, column = (2 * centres / SIDE - 1).T
    cos, sin = torch.cos(turn) * scale, torch.sin(turn) * scale
    inverse = torch.stack(
        [
            torch.stack([cos, sin, -cos * column - sin * row], 1),
            torch.stack([-sin, cos, sin * column - cos * row], 1),
        ],
        1,
    )
    grid = affine_grid(inverse, list(image.shape), align_corners=False)
    seen = grid_sample(skin, grid, padding_mode="border", align_corners=False)
    inside = (BOX / 2 * (1 - grid.norm(dim=-1))).clamp(0, 1).unsqueeze(1)
    painted: Tensor = image * (1 - inside) + seen * inside
    return painted
