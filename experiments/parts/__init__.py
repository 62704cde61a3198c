"""Where the time of a private training step goes."""
