"""DFA through a stored matrix, a streamed one and a structured one: what they reach, plain and private."""
