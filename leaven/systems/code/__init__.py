"""Code: models that read and write programs."""
