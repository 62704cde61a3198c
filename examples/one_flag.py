"""One flag changed: the same private training with the error projected by a matrix product, then by light.

    python examples/one_flag.py

The optical unit is simulated: binary mirrors, speckle, interference and a camera. Nothing here ran on hardware.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from optical_dfa import Guarantee, PrivacyEngine, align, load

EPOCHS, DELTA = 6, 1e-4
data = load("digits")


def train(backend: str) -> tuple[float, Guarantee]:
    """Test accuracy, and what the run guarantees."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    engine = PrivacyEngine()
    module, optimizer, loader = engine.make_private_with_epsilon(
        module=align(net, rule="dfa", backend=backend, show=None),  # the flag
        optimizer=torch.optim.SGD(net.parameters(), lr=0.5),
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
    with torch.no_grad():
        right = net(data.x_test).argmax(1) == data.y_test
    return right.double().mean().item(), engine.get_guarantee(DELTA)


results = {backend: train(backend) for backend in ("digital", "simulated-opu")}
for backend, (accuracy, guarantee) in results.items():
    print(f"{backend}: {100 * accuracy:.1f} % of the test digits, {guarantee}")
