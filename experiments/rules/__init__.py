"""Training without privacy: Direct Feedback Alignment, backpropagation, and frozen hidden layers."""
