"""Continual learning: models that take in classes as they come."""
