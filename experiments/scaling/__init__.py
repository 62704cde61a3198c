"""How time and memory of a projection grow with its size: stored, streamed and structured matrices."""
