"""The systems, one module each, in packages by area."""
