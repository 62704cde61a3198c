"""The distinguishing attack on every sound release and device: lower bounds against claims."""
