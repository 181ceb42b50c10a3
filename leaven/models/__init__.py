"""The trunk, its blocks, the models built of them, the Hugging Face bridge and the zoo."""
