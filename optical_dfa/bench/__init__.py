"""Paired measurements of speed, and of memory, behind `optical-dfa bench`."""
