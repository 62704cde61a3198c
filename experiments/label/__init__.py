"""Label privacy on MNIST (THEORY T7): what accounting by leverage gains over paying every record's whole shift."""
