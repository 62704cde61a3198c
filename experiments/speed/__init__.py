"""Time of a private training step beside plain backpropagation and Opacus."""
