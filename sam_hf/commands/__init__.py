"""The command line `sam-hf`."""
