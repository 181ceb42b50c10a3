"""Combine trained models."""
