"""Encode, index, link, join and rank."""
