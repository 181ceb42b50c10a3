"""leaven: pre-training, adapting, merging, retrieving and generating, from 106 papers in one library."""

__version__ = "0.1.0"
