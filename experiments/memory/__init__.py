"""Peak memory of a private training step beside plain backpropagation and Opacus."""
