"""Attacks on releases: what an adversary who sees everything public can find out, measured."""
