"""Hugging Face checkpoints into the trunk and back, one module per architecture."""
