"""Adapters: small learned parts of a frozen model."""
