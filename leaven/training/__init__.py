"""The loop, budgets, schedules, checkpoints and distributed training."""
