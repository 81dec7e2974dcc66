"""
Compares rules for a radius without tuning on both demo tasks: those that were tried before `sam_rho_schedule="auto"`.

    python benchmarks/rho_rules.py --task text --output outputs/rho_rules_text.json --jobs 2

Every rule sets ρ before each update:

    fixed R     ρ = R
    lr R        ρ = R · lr/lr₀
    weights C   ρ = C ‖w‖
    step C      ρ = C ‖w_t − w_{t−1}‖, the length of the optimizer's last step ("auto" is C = 0.1)
    steps C     the same with the mean length of all earlier steps
    gradient C  ρ = C ‖g‖
    rise C      feedback: ρ grows or shrinks until L(w+ε) − L(w) = C · L(w)

Accuracies are those of the final epoch, on test examples and on training examples that were kept out.
The results of text and image in benchmarks/results/ come from one H100. In those runs `gradient` and `rise` used the
gradient of the update itself; here they use that of the update before. The result file keeps finished runs: an
interrupted command continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from functools import partial
from pathlib import Path

KEPT_OUT = 1000  # training examples
IMAGES = Path(__file__).parents[1] / "data" / "fashion_mnist"
SETTINGS = {
    # number of examples, share of wrong labels, learning rate, epochs, arguments
    "text": [
        (2000, 0.0, 1e-4, 3, {}),
        (2000, 0.2, 1e-4, 3, {}),
        (2000, 0.4, 1e-4, 3, {}),
        (2000, 0.4, 3e-5, 3, {}),
        (500, 0.2, 1e-4, 6, {}),
        (6000, 0.4, 1e-4, 2, {}),
    ],
    "image": [
        (2000, 0.0, 1e-3, 2, {"sam_batch_norm": "first"}),
        (2000, 0.4, 1e-3, 2, {"sam_batch_norm": "first"}),
        (2000, 0.8, 1e-3, 2, {"sam_batch_norm": "first"}),
        (2000, 0.4, 3e-4, 2, {"sam_batch_norm": "first"}),
        (2000, 0.4, 3e-4, 2, {"sam_batch_norm": "frozen"}),
    ],
    # The committed subset has fewer images: give --images
    "image_sizes": [
        (500, 0.4, 3e-4, 6, {"sam_batch_norm": "frozen"}),
        (7000, 0.4, 3e-4, 1, {"sam_batch_norm": "frozen"}),
    ],
}
RULES = ["none", "none, twice the epochs", "lr 0.03", *(f"fixed {rho}" for rho in (0.003, 0.01, 0.03, 0.1, 0.3))]
RULES += ["weights 6e-5", "weights 2e-4", "step 0.02", "step 0.1", "step 0.2", "step 0.3", "step 0.5"]
RULES += ["steps 0.1", "steps 0.2", "gradient 0.004", "gradient 0.012", "rise 0.05", "rise 0.1", "rise 0.2"]


def trainer_class(rule: str):
    """Return a `SAMTrainer` that sets another radius before each update, which reads it when it begins."""
    import torch
    from torch.nn.utils import get_total_norm

    from sam_hf import SAMTrainer

    kind, _, number = rule.partition(" ")
    share = float(number)

    class Trainer(SAMTrainer):
        before: list | None = None
        lengths: tuple[float, ...] = ()
        radius = 1e-4

        def get_batch_samples(self, *args, **kwargs):
            self.args.sam_rho = self.next_radius()
            return super().get_batch_samples(*args, **kwargs)

        @torch.no_grad()
        def next_radius(self) -> float:
            weights = [p.detach() for p in self.model.parameters() if p.requires_grad]
            if kind == "weights":
                return share * float(get_total_norm(weights))
            if kind in ("step", "steps"):
                if self.before is not None:
                    moved = [new - old for new, old in zip(weights, self.before, strict=True)]
                    self.lengths += (float(get_total_norm(moved)),)
                self.before = [weight.clone() for weight in weights]
                taken = self.lengths if kind == "steps" else self.lengths[-1:]
                return share * sum(taken) / max(1, len(taken))
            window = self._sam_window
            if kind in ("gradient", "rise") and window is not None:
                loss, perturbed = float(window._totals.loss), float(window._totals.perturbed_loss)
                if kind == "gradient":
                    return share * (perturbed - loss) / self.args.sam_rho
                factor = 1.25 if perturbed <= loss else (share * loss / (perturbed - loss)) ** 0.5
                self.radius *= min(max(factor, 0.8), 1.25)
            return self.radius

    return Trainer


def train_and_score(job: dict, images: Path) -> dict:
    import numpy as np
    from transformers import set_seed
    from transformers.utils import logging

    from sam_hf import SAMTrainer, SAMTrainingArguments
    from sam_hf.reports.environment import environment

    logging.set_verbosity_error()
    make_model, train, kept_out, test, collate, classes = data_of(job["task"], images)
    rule, examples, noise, lr, epochs, extra = (job[k] for k in ("rule", "examples", "noise", "lr", "epochs", "extra"))
    random = np.random.default_rng(1000 + job["seed"])
    rows = [dict(train[i]) for i in random.permutation(len(train))[:examples]]
    for i in random.permutation(examples)[: round(noise * examples)]:
        rows[i]["labels"] = int((rows[i]["labels"] + random.integers(1, classes)) % classes)
    kind = rule.split()[0].rstrip(",")
    options = {"sam_method": "none"} if kind == "none" else {"sam_rho": 1e-4}
    if kind in ("fixed", "lr"):
        options = {"sam_rho": float(rule.split()[1]), "sam_rho_schedule": "lr" if kind == "lr" else "constant"}
    set_seed(job["seed"])
    with tempfile.TemporaryDirectory() as folder:
        args = SAMTrainingArguments(
            folder,
            num_train_epochs=epochs * (2 if "twice" in rule else 1),
            per_device_train_batch_size=32,
            per_device_eval_batch_size=256,
            learning_rate=lr,
            warmup_steps=0.1,
            weight_decay=0.01,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=job["seed"],
            **extra,
            **options,
        )
        made = SAMTrainer if kind in ("none", "fixed", "lr") else trainer_class(rule)
        trainer = made(model=make_model(), args=args, train_dataset=rows, data_collator=collate)
        trainer.train()
        accuracy = {}
        for name, part in (("kept_out", kept_out), ("test", test)):
            prediction = trainer.predict(part[: job.get("limit")])
            scores = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
            accuracy[name] = float((scores.argmax(-1) == prediction.label_ids).mean())
    return {**job, **accuracy, "environment": environment()}


def data_of(task: str, images: Path):
    """Return a function that makes a model; training, kept-out and test rows; a collator; the number of classes."""
    from sam_hf.inputs.demo import demo_model_path, load_demo_dataset

    if task == "text":
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

        path = demo_model_path("minilm")
        tokenizer = AutoTokenizer.from_pretrained(path)
        data = load_demo_dataset("rotten-tomatoes")
        train, test = (
            [
                {**tokenizer(text, truncation=True, max_length=48), "labels": label}
                for text, label in zip(part["text"], part["label"], strict=True)
            ]
            for part in (data["train"].shuffle(seed=7), data["validation"])
        )
        make = partial(AutoModelForSequenceClassification.from_pretrained, path, num_labels=2)
        return make, train[:-KEPT_OUT], train[-KEPT_OUT:], test, DataCollatorWithPadding(tokenizer), 2

    import torch
    from datasets import load_dataset
    from torchvision.transforms.v2.functional import pil_to_tensor, resize
    from transformers import AutoModelForImageClassification

    def collate(rows):
        pictures = resize(torch.stack([pil_to_tensor(row["image"]) for row in rows]).float() / 255, [64, 64])
        labels = torch.tensor([row["labels"] for row in rows])
        return {"pixel_values": ((pictures - 0.5) / 0.5).expand(-1, 3, -1, -1).contiguous(), "labels": labels}

    files = {part: str(images / f"{part}.parquet") for part in ("train", "test")}
    parts = load_dataset("parquet", data_files=files).rename_column("label", "labels")
    train, test = list(parts["train"]), list(parts["test"])
    path = demo_model_path("efficientnet-lite0")
    make = partial(AutoModelForImageClassification.from_pretrained, path, num_labels=10, ignore_mismatched_sizes=True)
    return make, train[:-KEPT_OUT], train[-KEPT_OUT:], test, collate, 10


def check_images(jobs: list[dict], folder: Path) -> None:
    """Check, before any job runs, that there are enough images; otherwise a job would silently train on fewer."""
    import pyarrow.parquet

    available = pyarrow.parquet.read_metadata(folder / "train.parquet").num_rows - KEPT_OUT
    needed = max(job["examples"] for job in jobs)
    if available < needed:
        raise SystemExit(
            f"{folder}: the jobs need {needed} training images, but there are {available} without those kept out"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(SETTINGS), required=True)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11])
    parser.add_argument("--examples", type=int, help="the largest number of examples, to try the command")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder made by data/fashion_mnist/make_subset.py")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    names = ("examples", "noise", "lr", "epochs", "extra")
    settings = [dict(zip(names, values, strict=True)) for values in SETTINGS[options.task]]
    for setting in settings:
        if options.examples:
            setting |= {"examples": min(setting["examples"], options.examples), "limit": options.examples}
    jobs = [
        {"task": options.task, "rule": rule, "seed": seed, **setting}
        for seed in options.seeds
        for setting in settings
        for rule in options.rules
    ]
    if options.task != "text":
        check_images(jobs, options.images)
    result = json.loads(options.output.read_text()) if options.output.exists() else {"runs": []}
    done = result["runs"]
    jobs = [job for job in jobs if not any(job.items() <= run.items() for run in done)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=50) as pool:
        for run in pool.imap_unordered(partial(train_and_score, images=options.images), jobs):
            done.append(run)
            options.output.write_text(json.dumps(result, indent=1) + "\n")
            print(
                f"{run['rule']}, {run['examples']} examples, noise {run['noise']:.0%}: {run['test']:.3f}", flush=True
            )


if __name__ == "__main__":
    main()
