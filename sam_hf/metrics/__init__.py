"""Metrics that need no Hub: modules for `evaluate.load(path)`."""
