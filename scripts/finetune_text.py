"""Run the recipe `sam_hf.recipes.finetune_text`: finetune on text with Sharpness-Aware Minimization."""

from sam_hf.command_line import run
from sam_hf.recipes.finetune_text import main

if __name__ == "__main__":
    run(main)
