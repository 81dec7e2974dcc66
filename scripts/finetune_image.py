"""Run the recipe `sam_hf.recipes.finetune_image`: finetune on images with Sharpness-Aware Minimization."""

from sam_hf.command_line import run
from sam_hf.recipes.finetune_image import main

if __name__ == "__main__":
    run(main)
