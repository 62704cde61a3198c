"""The networks that the program trains."""
