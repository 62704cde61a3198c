"""Health of a noise source: tests of its frames while they are used."""
