"""Every feedback rule on the same network and data: two hidden layers of 800 tanh units, MNIST."""
