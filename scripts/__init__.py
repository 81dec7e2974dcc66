"""Finetuning programs. Run them from here, or as `sam-hf text` and `sam-hf image` once the package is installed."""
