"""The common grounds on which systems of one family compete: data, splits, tasks, metrics, fine-tuning."""
