"""Raw things to tokens and back: one module per modality."""
