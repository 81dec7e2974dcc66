"""
Draws the pictures of docs/gallery.md from the committed numbers of the demo run with AdamW and with SAM.

    sam-hf text --config configs/demo_text.yaml --eval_on_start false --sam_method none --output_dir outputs/adamw
    sam-hf text --config configs/demo_text.yaml --eval_on_start false --output_dir outputs/sam
    sam-hf sharpness --model outputs/sam --against outputs/adamw --dataset demo:rotten-tomatoes \\
        --max_train_samples 1000 --max_seq_length 48 --max_examples 64 --m 8 16 32 64 --landscape_radius 0.5 \\
        --out outputs/gallery
    python benchmarks/gallery.py --measured outputs/gallery --runs outputs/sam outputs/adamw   # copy these numbers
    python benchmarks/gallery.py                                                               # draw again
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
NUMBERS = ROOT / "benchmarks" / "results" / "gallery"
PICTURES = ROOT / "docs" / "pictures"


def copy_numbers(measured: Path, runs: list[Path]) -> None:
    NUMBERS.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(measured / "sharpness.json", NUMBERS / "sharpness.json")
    histories = {run.name: json.loads((run / "trainer_state.json").read_text())["log_history"] for run in runs}
    (NUMBERS / "training.json").write_text(json.dumps(histories, indent=1) + "\n")


def draw() -> None:
    from sam_hf import plots
    from sam_hf.commands.sharpness.page import draw_pictures

    with tempfile.TemporaryDirectory() as folder:
        for picture in draw_pictures(json.loads((NUMBERS / "sharpness.json").read_text()), folder):
            shutil.copyfile(picture.png, PICTURES / f"gallery_{picture.name}.png")
        histories = json.loads((NUMBERS / "training.json").read_text())
        figure = plots.draw_training_curves(histories)[0].get_figure()
        png, _ = plots.save(figure, folder, "training")
        shutil.copyfile(png, PICTURES / "gallery_training.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, help="the folder that `sam-hf sharpness --out` wrote")
    parser.add_argument("--runs", type=Path, nargs="+", help="folders of the runs; the pictures show their names")
    options = parser.parse_args()
    if (options.measured is None) != (options.runs is None):
        parser.error("--measured and --runs go together")
    if options.measured is not None:
        copy_numbers(options.measured, options.runs)
    draw()


if __name__ == "__main__":
    main()
