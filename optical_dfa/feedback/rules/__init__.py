"""The feedback rules, one a file."""
