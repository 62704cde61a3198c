"""A model of your own with residual blocks, cut where nothing goes round the cut.

    python examples/own_model.py

By default a model is cut at its activations. One inside a residual branch leaves the skip beside it uncut, so `align`
refuses, with the reason. `points=` names the modules to cut at, here the whole blocks: inside one the gradient is
backpropagated, and past its output nothing goes on.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from optical_dfa import PrivacyEngine, UsageError, align, load

EPOCHS, DELTA = 10, 1e-4


class Block(nn.Module):
    """h + W2 tanh(W1 h), of shape (records, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


data = load("digits")
torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.Tanh(), Block(96), Block(96), nn.Linear(96, 10))
try:
    module = align(net, example=data.x_test[:1])
except UsageError as error:
    print(f"by default: {error}")
    module = align(net, example=data.x_test[:1], points=["2", "3", "4"])  # prints what each point trains

engine = PrivacyEngine()
module, optimizer, loader = engine.make_private_with_epsilon(
    module=module,
    optimizer=torch.optim.SGD(net.parameters(), lr=0.3),
    data_loader=DataLoader(TensorDataset(data.x_train, data.y_train), batch_size=256),
    target_epsilon=8.0,
    target_delta=DELTA,
    epochs=EPOCHS,
    max_grad_norm=1.0,
)
for _ in range(EPOCHS):
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()

guarantee = engine.get_guarantee(DELTA)
with torch.no_grad():
    accuracy = (net(data.x_test).argmax(1) == data.y_test).double().mean().item()
print(f"{100 * accuracy:.1f} % of the test digits; {guarantee}")
