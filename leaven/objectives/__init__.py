"""Corruption and loss: one idea per module."""
