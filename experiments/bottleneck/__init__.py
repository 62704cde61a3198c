"""What Direct Feedback Alignment loses where only a few units of one layer may learn (Launay et al. 2019)."""
