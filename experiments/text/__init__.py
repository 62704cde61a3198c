"""Language models by direct feedback: a character-level GRU and a Transformer on tiny-shakespeare."""
