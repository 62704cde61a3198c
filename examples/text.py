"""Text, character by character: a GRU whose states are taught directly at every time.

    python examples/text.py

A fused `nn.GRU` is one operation, so that nothing inside can be taught directly: take the unrolled cells of
`optical_dfa.networks.recurrent` (same equations, weights in the same order) and a rule for recurrent cells.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from optical_dfa import PrivacyEngine, align
from optical_dfa.networks.recurrent import GRU

EPOCHS, DELTA, LENGTH = 5, 1e-4, 16
TEXT = "to be or not to be that is the question " * 400
CHARACTERS = sorted(set(TEXT))


class Reader(nn.Module):
    """Logits of the next character at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = GRU(len(CHARACTERS), 64), nn.Linear(64, len(CHARACTERS))

    def forward(self, x: Tensor) -> Tensor:
        # (records, time), whole numbers -> (records, time, characters)
        return self.out(self.cell(nn.functional.one_hot(x, len(CHARACTERS)).float()))


codes = torch.tensor([CHARACTERS.index(c) for c in TEXT])
windows = codes.unfold(0, LENGTH + 1, LENGTH)  # a record: a character and the LENGTH after it
train, test = windows[:-100], windows[-100:]
torch.manual_seed(0)
net = Reader()
module = align(net, rule="sparse-recurrent", example=test[:1, :-1])
engine = PrivacyEngine()
module, optimizer, loader = engine.make_private_with_epsilon(
    module=module,
    optimizer=torch.optim.SGD(net.parameters(), lr=2.0),
    data_loader=DataLoader(TensorDataset(train[:, :-1], train[:, 1:]), batch_size=64),
    target_epsilon=8.0,
    target_delta=DELTA,
    epochs=EPOCHS,
    max_grad_norm=1.0,
)
for _ in range(EPOCHS):
    for x, y in loader:
        optimizer.zero_grad()
        cross_entropy(module(x).flatten(0, 1), y.flatten()).backward()
        optimizer.step()

guarantee = engine.get_guarantee(DELTA)
with torch.no_grad():
    accuracy = (net(test[:, :-1]).argmax(2) == test[:, 1:]).double().mean().item()
print(f"{100 * accuracy:.1f} % of the next characters; {guarantee}")
