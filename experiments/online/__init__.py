"""Learning from a stream of few records: tracking, and digits whose classes come in pairs."""
