"""Change a pre-trained model: parameter-efficient tuning, prompts, continual learning, distillation."""
