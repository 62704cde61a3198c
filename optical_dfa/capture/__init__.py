"""What keeps a private pass to sums over records: every operation followed, masks drawn in secret, state left alone."""
