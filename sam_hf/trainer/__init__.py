"""
The connection to Trainer: `SAMMixin` (start with `mixin.py`), the runner of passes (`runner.py`), refusals, warnings,
and checkpoints.
"""
