"""Workers that own layers: a step of theirs beside one process's, and beside a pipeline of backpropagation."""
