"""Finetune a pretrained checkpoint on text with Sharpness-Aware Minimization. The program is `sam_hf.recipes`'s."""

from sam_hf.command_line.parsing import run
from sam_hf.recipes.finetune_text import main

if __name__ == "__main__":
    run(main)
