"""What is measured of a rule: alignment with the gradient, and costs."""
