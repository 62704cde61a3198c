"""Which settings suit tables of one's own, by the number of their records."""
