"""Auditing: what a run's ledger proves, and whether the run's claims agree."""
