"""Feedback rules on convolutions: a small network with one fully connected hidden layer, CIFAR-10."""
