"""Direct feedback from 50,000 classes: words, projected to hidden layers without a feedback matrix in memory."""
