"""The metrics of the field under one signature."""
