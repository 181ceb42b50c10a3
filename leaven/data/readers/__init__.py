"""One module per format of the user's data."""
