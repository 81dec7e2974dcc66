"""
One update: the windows that order its passes, and what they do between the passes.

This folder knows methods and tensors. It knows nothing of Trainer: a window asks a `PassRunner` (runner.py) for its
passes. Start with ascent_window.py.
"""
