"""What sparse direct feedback saves, counted: the networks of Crafton et al. 2019."""
