"""What private capture refuses: each is something that would break the sum over records."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align, unalign
from optical_dfa.capture.pending import PASSES
from optical_dfa.capture.records import Capture

M = 6
X = torch.randn(M, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (M,), generator=torch.Generator().manual_seed(1))
IMAGE = torch.zeros(2, 3, 4, 4)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    return message


def start(net: nn.Module, example: Tensor = X, rule: str = "dfa") -> Capture:
    capture = align(net, rule=rule, example=example, show=None).start_capture()
    capture.expected_records = lambda: M
    return capture


def around(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), layer, nn.Tanh(), nn.Flatten(), nn.Linear(48, 4))


@pytest.mark.parametrize("layer", [
    nn.BatchNorm2d(3),
    nn.BatchNorm2d(3).eval(),
    nn.BatchNorm2d(3, affine=False),
    nn.BatchNorm2d(3).requires_grad_(False),
    nn.BatchNorm2d(3, affine=False, track_running_stats=False),
    nn.SyncBatchNorm(3),
    nn.InstanceNorm2d(3, track_running_stats=True),
])  # fmt: skip
def test_layers_that_mix_records_are_named_with_their_replacement(layer: nn.Module) -> None:
    message = refusal(lambda: start(around(layer), IMAGE))
    assert type(layer).__name__ in message
    assert "GroupNorm" in message


def test_instance_norm_without_state_is_a_function_of_one_record() -> None:
    start(around(nn.InstanceNorm2d(3)), IMAGE)


class Holding(nn.Module):
    """Holds a parameter that another module's forward uses."""

    def __init__(self) -> None:
        super().__init__()
        self.scales, self.out = nn.ParameterList([torch.ones(5)]), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x * self.scales[0])


def test_unsupported_layers_are_named() -> None:
    message = refusal(lambda: start(Holding(), rule="bp"))
    assert message.startswith("parameter 0 of scales (ParameterList) cannot be trained privately")
    assert "freeze it" in message


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_a_hook_computes_is_refused() -> None:
    old = nn.utils.weight_norm(nn.Linear(5, 6))
    message = refusal(lambda: start(nn.Sequential(old, nn.Tanh(), nn.Linear(6, 4))))
    assert message.startswith("weight of 0 is computed from other parameters")


def test_unsupported_layers_may_stay_frozen() -> None:
    net = Holding()
    net.scales.requires_grad_(False)
    assert list(start(net, rule="bp").parameters) == ["out.weight", "out.bias"]


def test_nothing_to_train_is_refused() -> None:
    assert "frozen" in refusal(lambda: start(nn.Sequential(nn.Linear(5, 4)).requires_grad_(False)))


class Centred(nn.Module):
    """Opacus accepts this one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.phi, self.two, self.how = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), how
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.phi(self.one(x))
        if self.how == "mean":
            h = h - h.mean(0)
        elif self.how == "maximum":
            h = h / h.detach().abs().amax()
        elif self.how == "neighbour":
            h = h + h.roll(1, 0)
        elif self.how == "statistics":
            self.seen.mul_(0.9).add_(h.detach().mean(0))
        elif self.how == "only in training":
            h = h - h.mean(0) if self.training else h
        elif self.how == "fold":
            return self.two(h.view(1, -1, 6)).flatten(0, 1)
        return self.two(h)


@pytest.mark.parametrize(("how", "words"), [
    ("mean", "two mixes records"),
    ("maximum", "two mixes records"),
    ("neighbour", "two mixes records"),
    ("only in training", "two mixes records"),
    ("statistics", "seen changes"),
    ("fold", "two sees 1 rows"),
])  # fmt: skip
def test_a_forward_pass_that_couples_records_is_refused(how: str, words: str) -> None:
    net = Centred(how)
    net.train(how != "only in training")  # the mode it happens to be in is not the one it is trained in
    before = {name: b.clone() for name, b in net.named_buffers()}
    assert words in refusal(lambda: start(net, X))
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())  # probed on a copy
    assert not any(part._forward_hooks for part in (net.two,))  # and nothing stays behind


class Outside(nn.Module):
    """A weight that is also used outside its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.phi, self.two = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.phi(self.one(x))
        return self.two(h) + nn.functional.linear(h, self.two.weight)


def test_a_parameter_used_outside_its_layer_is_refused() -> None:
    message = refusal(lambda: start(Outside()))
    assert "two.weight" in message
    assert "call the layer" in message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_are_refused(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).to(dtype)
    assert "float32 or float64" in refusal(lambda: start(net, X.to(dtype)))


def test_mixed_precision_parameters_are_refused() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.phi, self.two = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.phi(self.one(x)).double())

    assert "float32 and float64" in refusal(lambda: start(Cast()))


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_embeddings_whose_gradient_is_not_a_sum_are_refused(options: dict[str, object]) -> None:
    net = nn.Sequential(nn.Embedding(9, 3, **options), nn.Flatten(), nn.Linear(15, 4))
    refusal(lambda: start(net, torch.zeros(2, 5, dtype=torch.int64)))


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.embed(tokens))


def test_records_longer_than_the_example_are_refused() -> None:
    """The rounding bound was computed for the example's length."""
    aligned = align(Sequences(), example=torch.zeros(2, 5, dtype=torch.int64), show=None)
    capture = aligned.start_capture()
    capture.expected_records = lambda: M
    for length, refused in ((3, False), (5 * PASSES, False), (5 * PASSES + 1, True)):
        cross_entropy(aligned(torch.zeros(M, length, dtype=torch.int64)).mean(1), Y).backward()
        if refused:
            assert "as long as the longest record" in refusal(capture.norms)
        else:
            capture.norms()
        capture.clear()


def test_a_pass_without_the_loaders_batch_is_refused() -> None:
    aligned = align(nn.Sequential(nn.Linear(5, 4)), show=None)
    capture = aligned.start_capture()
    assert "loader that make_private returned" in refusal(lambda: aligned(X))
    capture.expected_records = lambda: M - 1
    message = refusal(lambda: aligned(X))
    assert "not the one that the private loader handed out" in message
    assert not any(
        figure in message for figure in (str(M), str(M - 1))
    )  # the batch's size is nobody's to know
    with torch.no_grad():
        assert aligned(X).shape == (M, 4)  # evaluation is free


def test_parameters_are_frozen_during_the_pass_and_thawed_after_it() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    net[0].bias.requires_grad_(False)
    aligned = align(net, show=None)
    capture = aligned.start_capture()
    capture.expected_records = lambda: M
    cross_entropy(aligned(X), Y).backward()
    assert all(p.grad is None for p in net.parameters())  # no weight gradient was ever formed
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]
    capture.expected_records = lambda: 1
    refusal(lambda: aligned(X))
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]


def test_an_input_changed_in_place_after_its_layer_is_refused() -> None:
    """Plain autograd notices this on its saved tensors; so does the capture on the inputs it keeps."""

    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.phi, self.two = nn.Linear(5, 5), nn.Identity(), nn.Linear(5, 4)
            self.changes = False

        def forward(self, x: Tensor) -> Tensor:
            h = self.phi(x.clone())
            y = self.one(h)
            if self.changes:
                h += 1
            return self.two(self.phi(y))

    aligned = align(Changed(), rule="bp", example=X, show=None)
    capture = aligned.start_capture()
    capture.expected_records = lambda: M
    aligned.module.changes = True
    loss = cross_entropy(aligned(X), Y)
    assert "one was changed in place" in refusal(loss.backward)


def test_inputs_may_come_by_keyword() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.phi, self.two = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(input=self.phi(self.one(input=x)))

    aligned = align(Keyword(), show=None)
    capture = aligned.start_capture()
    capture.expected_records = lambda: M
    cross_entropy(aligned(X), Y).backward()
    assert (capture.norms() > 0).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_hold_no_record_and_have_no_loader(copied: Callable[[nn.Module], Any]) -> None:
    aligned = align(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), show=None)
    capture = aligned.start_capture()
    batch = M
    capture.expected_records = lambda: batch
    cross_entropy(aligned(X), Y).backward()
    twin = copied(aligned)
    assert (twin._capture.uses, twin._capture.calls) == ([], [])
    assert len(capture.uses) == 2
    assert "loader that make_private returned" in refusal(lambda: twin(X))
    with torch.no_grad():
        assert torch.equal(twin(X), aligned(X))
    net = unalign(twin)
    cross_entropy(net(X), Y).backward()  # the plain module again, its own
    assert len(capture.uses) == 2
    assert all(p.grad is None for p in aligned.parameters())


def test_stopping_gives_the_aligned_module_back() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    aligned = align(net, show=None)
    cross_entropy(aligned(X), Y).backward()
    expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    aligned.start_capture()
    aligned.stop_capture()
    aligned.zero_grad()
    cross_entropy(aligned(X), Y).backward()
    for p, g in zip(net.parameters(), expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, g)
    assert not any(hook for part in net for hook in part._forward_hooks_with_kwargs)


class Masked(nn.Module):
    """Integer and boolean inputs, dropout: all functions of one record."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.phi, self.drop, self.two = nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.two(self.drop(self.phi(self.one(x.float() / 255 * mask))))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_probing_takes_inputs_of_any_type_and_dropout(dtype: torch.dtype) -> None:
    inputs = (torch.zeros(2, 5, dtype=dtype), torch.zeros(2, 5, dtype=torch.bool))
    aligned = align(Masked(), example=inputs, show=None)
    capture = aligned.start_capture()
    capture.expected_records = lambda: M
    x = torch.randint(0, 255, (M, 5), generator=torch.Generator().manual_seed(2)).to(dtype)
    norms = []
    for secret in (1, 1, 2):
        capture.masks = NoiseGenerator.seeded(secret, "masks")
        cross_entropy(aligned(x, torch.ones(M, 5, dtype=torch.bool)), Y).backward()
        norms.append(capture.norms())
        capture.clear()
    assert (norms[0] > 0).any()
    assert torch.equal(norms[0], norms[1])
    assert not torch.equal(
        norms[0], norms[2]
    )  # dropout is on, and its masks come from the secret stream alone
    aligned.stop_capture()
    state = torch.random.get_rng_state()
    aligned.start_capture()
    assert torch.equal(torch.random.get_rng_state(), state)  # probing leaves the user's generator alone
