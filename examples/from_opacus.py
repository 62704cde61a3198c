"""A training script written for Opacus, ported: two lines changed, marked below.

    python examples/from_opacus.py

The shape is that of Opacus' MNIST example; the data are the 8 x 8 digits, so that nothing is downloaded. Functional
activations have become modules, because direct feedback is cut at modules: `align` refuses the former, with the lines
to write.
"""

import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from optical_dfa import PrivacyEngine, align, load  # was: from opacus import PrivacyEngine

EPOCHS, DELTA = 10, 1e-4


class SampleConvNet(nn.Module):
    """Two convolutions and two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.tanh1, self.pool1 = nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)
        self.conv2, self.tanh2, self.pool2 = nn.Conv2d(16, 32, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)
        self.fc1, self.tanh3, self.fc2 = nn.Linear(32 * 2 * 2, 32), nn.Tanh(), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool1(self.tanh1(self.conv1(x)))
        x = self.pool2(self.tanh2(self.conv2(x)))
        return self.fc2(self.tanh3(self.fc1(x.flatten(1))))


data = load("digits")
loader = DataLoader(TensorDataset(data.x_train, data.y_train), batch_size=128, shuffle=True)
torch.manual_seed(0)
model = align(SampleConvNet(), example=data.x_test[:1])  # the other line: was SampleConvNet()
optimizer = optim.SGD(model.parameters(), lr=2.0)
engine = PrivacyEngine()
model, optimizer, loader = engine.make_private(
    module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=0.8, max_grad_norm=1.0
)
criterion = nn.CrossEntropyLoss()
for epoch in range(EPOCHS):
    for images, labels in loader:
        optimizer.zero_grad()
        criterion(model(images), labels).backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: epsilon {engine.get_epsilon(DELTA):.2f} at delta {DELTA}")

guarantee = engine.get_guarantee(DELTA)
with torch.no_grad():
    accuracy = (model(data.x_test).argmax(1) == data.y_test).double().mean().item()
print(f"{100 * accuracy:.1f} % of the test digits; {guarantee}")
