"""What records contribute to a step: the forms that releases take."""
