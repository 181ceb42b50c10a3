"""Systems that combine trained models."""
