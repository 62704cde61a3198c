"""Run folders: written, read and continued."""
