"""Surveys: the field as a kit of parts that can be combined and compared."""
