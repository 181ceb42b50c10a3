"""Claims, arms, statistics, verdicts and reports."""
