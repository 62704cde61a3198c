"""Paired speed measurements behind `optical-dfa bench`."""
