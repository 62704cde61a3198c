"""Tracking by an online classifier of patches, foreground or background, after MDNet (Nam and Han 2016).

The front end is fixed: oriented gradients and grey levels of a patch's cells, in place of frozen convolutions. The
fully connected part learns: from labelled patches in the first frame, later from patches around the tracker's own
estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from experiments.online.scene import BOX, SIDE, Stream
from noise_models.randomness.generator import derive_seed
from optical_dfa.networks import building as models
from optical_dfa.training.online import OnlineLearner

MODEL = "mlp:128,64"
CELL, ORIENTATIONS = 5, 6
CELLS = BOX // CELL
FEATURES = CELLS**2 * (ORIENTATIONS + 1)
FIRST_STEPS, FIRST_TIMES = 60, 5  # in the first frame: steps, and how often the usual number of patches
CANDIDATES, BEST = 128, 3
REACH = 4.0  # pixels, standard deviation of the candidates' offsets
NEAR, FAR = 2, (8, 30)  # pixels: offsets of foreground patches, and of background patches
SUCCESS = 0.5  # overlap from which a frame counts


@dataclass(frozen=True)
class Track:
    """A tracker's answer: top left corners, shape (T, 2), and their overlap with the truth, shape (T,).

    The first frame is given.
    """

    boxes: Tensor
    overlap: Tensor

    def mean_overlap(self) -> float:
        return float(self.overlap[1:].mean())

    def success(self) -> float:
        """Share of the frames with an overlap of SUCCESS or more."""
        return float((self.overlap[1:] >= SUCCESS).double().mean())


def learner_of(rule: str, lr: float, seed: int, **rule_options: float) -> OnlineLearner:
    """A fresh classifier of patches."""
    network = models.build(MODEL, (FEATURES,), 2, seed)
    example = torch.zeros(1, FEATURES)
    return OnlineLearner(network, rule=rule, lr=lr, seed=seed, example=example, rule_options=rule_options)


def follow(stream: Stream, learner: OnlineLearner, seed: int, patches: int, update: bool = True) -> Track:
    """Follow the target of the first box.

    Args:
        learner: of patches; untrained.
        seed: of candidates and patches.
        patches: a frame's own patches from which to learn, a quarter of them foreground.
        update: whether to learn after the first frame.
    """
    draws = torch.Generator().manual_seed(derive_seed(seed, "patches"))
    maps = channels(stream.frames)
    place, reach = stream.boxes[0], REACH
    learner.learn(*labelled(maps[0], place, FIRST_TIMES * patches, draws), steps=FIRST_STEPS)
    boxes = [place]
    for current in maps[1:]:
        offsets = reach * torch.randn(CANDIDATES, 2, generator=draws)
        corners = within((place + offsets).round().long())
        logits = learner.predict(features(current, corners))
        scores = logits[:, 1] - logits[:, 0]
        best = scores.topk(BEST)
        sure = float(best.values.mean()) > 0
        if sure:
            place, reach = corners[best.indices].float().mean(0), REACH
        else:
            reach = min(2 * REACH, 1.2 * reach)  # where it was, and a wider look in the next frame
        boxes.append(place)
        if sure and update:
            x, y = labelled(current, place, patches, draws)
            wrong = overlap(corners.float(), place) < 0.4
            hard = corners[wrong][scores[wrong].argsort(descending=True)[: patches // 4]]
            learner.learn(
                torch.cat([x, features(current, hard)]), torch.cat([y, torch.zeros(len(hard), dtype=y.dtype)])
            )
    found = torch.stack(boxes)
    return Track(found, overlap(found, stream.boxes))


def labelled(current: Tensor, place: Tensor, patches: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches around a place, a quarter of them foreground, with their labels."""
    front = patches // 4
    near = torch.randint(-NEAR, NEAR + 1, (front, 2), generator=draws)
    angle = 2 * torch.pi * torch.rand(patches - front, generator=draws)
    far = FAR[0] + (FAR[1] - FAR[0]) * torch.rand(patches - front, generator=draws)
    away = (far.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)).round().long()
    corners = within(place.round().long() + torch.cat([near, away]))
    label = torch.cat([torch.ones(front), torch.zeros(patches - front)]).long()
    # At the border a background patch may be pushed onto the target.
    kept = (label == 1) | (overlap(corners.float(), place) < 0.5)
    return features(current, corners[kept]), label[kept]


def within(corners: Tensor) -> Tensor:
    return corners.clamp(0, SIDE - BOX)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes with these top left corners, shapes (..., 2)."""
    shared = (BOX - (first - second).abs()).clamp_min(0).prod(-1)
    return shared / (2 * BOX**2 - shared)


def channels(frames: Tensor) -> Tensor:
    """Means over the cell at every pixel: of the gradient by orientation, and of the grey level.

    Returns:
        shape (T, ORIENTATIONS + 1, SIDE - CELL + 1, SIDE - CELL + 1).
    """
    image = frames.unsqueeze(1)
    kernel = torch.tensor([[-0.5, 0.0, 0.5]])
    across = conv2d(image, kernel.view(1, 1, 1, 3), padding=(0, 1))
    down = conv2d(image, kernel.view(1, 1, 3, 1), padding=(1, 0))
    axes = torch.pi * torch.arange(ORIENTATIONS).view(1, -1, 1, 1) / ORIENTATIONS
    edges = (across * axes.cos() + down * axes.sin()).abs()
    return avg_pool2d(torch.cat([edges, image], 1), CELL, stride=1)


def features(current: Tensor, corners: Tensor) -> Tensor:
    """What the classifier sees of the patches of one frame, shape (m, FEATURES); light's strength is divided out.

    Args:
        current: of one frame, from `channels`.
        corners: top left, whole pixels, shape (m, 2).
    """
    steps = CELL * torch.arange(CELLS)
    rows = (corners[:, :1] + steps).unsqueeze(2)
    columns = (corners[:, 1:] + steps).unsqueeze(1)
    cells = current[:, rows, columns].permute(1, 0, 2, 3)  # (m, channels, CELLS, CELLS)
    edges, grey = cells[:, :-1].flatten(1), cells[:, -1].flatten(1)
    return torch.cat([_standardised(edges), _standardised(grey)], 1)


def _standardised(part: Tensor) -> Tensor:
    part = part - part.mean(1, keepdim=True)
    return part / part.std(1, keepdim=True).clamp_min(1e-3)
