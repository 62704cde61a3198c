"""Feedback rules on convolutions: a small network with two fully connected hidden layers, CIFAR-10."""
