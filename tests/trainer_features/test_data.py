"""SAM uses the batches that plain Trainer makes, in the same order, and counts and logs them in the same way."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from by_hand import RandomStates, real_optimizer, sum_of_means, train_by_hand, training_logs
from tiny import (
    LENGTH,
    assert_same,
    bert,
    flat,
    loss_of,
    perceptron,
    points,
    relative_difference,
    sentences,
    snapshot,
    trainer_of,
)
from torch.utils.data import IterableDataset
from transformers import Trainer

from sam_hf import SAMTrainer

RHO, BATCH = 0.2, 4


def of_several_lengths(size: int) -> list[dict]:
    """Return sentences that are cut to one to six words."""
    cut = [1 + (7 * i + i // 3) % LENGTH for i in range(size)]
    return [
        {key: value[:length] if value.dim() else value for key, value in example.items()}
        for example, length in zip(sentences(size), cut, strict=True)
    ]


def padded(examples) -> dict[str, torch.Tensor]:
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        key: torch.stack([e[key] for e in examples])
        if key == "labels"
        else pad([e[key] for e in examples], batch_first=True)
        for key in examples[0]
    }


class Stream(IterableDataset):
    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return iter(self.examples)


class SizedStream(Stream):
    def __len__(self):
        return len(self.examples)


def recorded(trainer_class, model, data, output_dir, **options):
    """Train, and return the trainer with the update and the batch of every forward pass."""
    passes = []

    class Recording(trainer_class):
        def compute_loss(self, model, inputs, *args, **kwargs):
            passes.append((self.state.global_step, {key: value.clone() for key, value in inputs.items()}))
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = trainer_of(model, data, output_dir, trainer_class=Recording, sam_rho=RHO, **options)
    trainer.data_collator = padded
    trainer.train()
    return trainer, passes


def by_update(passes) -> list[list[dict[str, torch.Tensor]]]:
    updates = []
    for update, batch in passes:
        if update == len(updates):
            updates.append([])
        updates[update].append(batch)
    return updates


SOURCES = {
    "random": {"train_sampling_strategy": "random"},
    "sequential": {"train_sampling_strategy": "sequential"},
    "group_by_length": {"train_sampling_strategy": "group_by_length"},
    "batch_rebalance": {"train_sampling_strategy": "batch_rebalance"},
    "drop_last": {"train_sampling_strategy": "random", "dataloader_drop_last": True},
    "part of an epoch": {"train_sampling_strategy": "random", "num_train_epochs": 1.5},
    "data_seed": {"train_sampling_strategy": "random", "data_seed": 7},
    "worker": {"train_sampling_strategy": "random", "dataloader_num_workers": 1},
    "sized stream": {"source": SizedStream},
}


@pytest.mark.parametrize(("source", "accumulation"), [("random", 1), *((source, 3) for source in SOURCES)])
def test_batches_of_plain_training_twice(tmp_path, source, accumulation):
    """With dropout and shuffling, which use the same generator, over epochs that end with a short window."""
    run = {
        "max_steps": -1,
        "num_train_epochs": 2,
        "gradient_accumulation_steps": accumulation,
        "include_num_input_tokens_seen": "non_padding",
    } | SOURCES[source]
    source = run.pop("source", list)
    model, states = bert(dropout=0.2), RandomStates()
    plain, plain_passes = recorded(Trainer, bert(dropout=0.2), source(of_several_lengths(22)), tmp_path, **run)
    trainer, passes = recorded(SAMTrainer, model, source(of_several_lengths(22)), tmp_path, callbacks=[states], **run)
    windows, sam_windows = by_update(plain_passes), by_update(passes)
    assert len(windows) == len(sam_windows) == trainer.state.max_steps
    for window, twice in zip(windows, sam_windows, strict=True):
        torch.testing.assert_close(twice, window + window, rtol=0, atol=0)
    assert trainer.state.epoch == plain.state.epoch
    assert trainer.state.num_input_tokens_seen == plain.state.num_input_tokens_seen

    expected = bert(dropout=0.2)
    optimizer, scheduler = real_optimizer(expected, sentences(4), tmp_path, len(windows))
    options = {"loss": sum_of_means, "random_states": states.states}
    train_by_hand(expected, as_examples(windows), optimizer, scheduler, rho=RHO, **options)
    assert relative_difference(flat(model), flat(expected)) < 1e-9


def as_examples(windows):
    return [
        [[{key: value[i] for key, value in batch.items()} for i in range(len(batch["labels"]))] for batch in window]
        for window in windows
    ]


def test_stream_without_length(tmp_path):
    """An epoch of six batches is a window of four and two more batches, which Trainer adds to its next update."""
    data, updates = points(24), 3
    model, start = perceptron(), perceptron()
    options = {"max_steps": updates, "gradient_accumulation_steps": 4}
    plain, plain_passes = recorded(Trainer, perceptron(), Stream(data), tmp_path, **options)
    trainer, passes = recorded(SAMTrainer, model, Stream(data), tmp_path, **options)
    batches = [data[i : i + BATCH] for i in range(0, len(data), BATCH)]
    full, rest = batches[:4], batches[4:]
    groups = [[full], *([[rest, full]] * (updates - 1))]
    assert [len(window) for window in by_update(plain_passes)] == [4, 6, 6]
    assert [len(window) for window in by_update(passes)] == [8, 12, 12]

    loss, w = loss_of(start), flat(start)
    optimizer = reference.SGD()
    for update in groups:
        # Each window has its own ε; there is no step between the two windows of one update
        weighted = [[e for micro in reference.mean_of_means(window) for e in micro] for window in update]
        w = optimizer.step(w, reference.sam_gradient(loss, w, weighted, RHO).gradient, 0.05)
    assert relative_difference(flat(model), w) < 1e-9
    assert trainer.state.global_step == plain.state.global_step == updates
    assert trainer.state.epoch == plain.state.epoch


@pytest.mark.parametrize("counted", ["all", "non_padding"])
@pytest.mark.parametrize("options", [{}, {"sam_m": 2}, {"sam_ascent_steps": 2}], ids=str)
def test_input_tokens_are_counted_once(tmp_path, counted, options):
    data = of_several_lengths(24)
    run = {"max_steps": 3, "gradient_accumulation_steps": 2, "include_num_input_tokens_seen": counted}
    trainer, _ = recorded(SAMTrainer, bert(), data, tmp_path, **run, **options)
    expected, seen = [], 0
    for start in range(0, len(data), 2 * BATCH):
        for batch in (data[start : start + BATCH], data[start + BATCH : start + 2 * BATCH]):
            lengths = [len(example["input_ids"]) for example in batch]
            seen += sum(lengths) if counted == "non_padding" else max(lengths) * len(lengths)
        expected.append(seen)
    assert [entry["num_input_tokens_seen"] for entry in training_logs(trainer)] == expected


class NotANumberOnce(SAMTrainer):
    """Makes the loss of the third update NaN, and its gradient too if `gradient` is true."""

    gradient = False

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.state.global_step == 2:
            return loss * math.nan if self.gradient else loss + math.nan
        return loss


class NotANumberFromThenOn(NotANumberOnce):
    gradient = True


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("trainer_class", [NotANumberOnce, NotANumberFromThenOn])
def test_logging_nan_inf_filter(tmp_path, trainer_class, filtered):
    options = {"max_steps": 4, "logging_steps": 2, "logging_nan_inf_filter": filtered}
    model, alone, plain_model = perceptron(), perceptron(), perceptron()
    trainer, _ = recorded(trainer_class, model, points(32), tmp_path, **options)
    plain, _ = recorded(trainer_class, plain_model, points(32), tmp_path, sam_method="none", **options)
    logs, plain_logs = training_logs(trainer), training_logs(plain)
    finite = [math.isfinite(entry["loss"]) for entry in logs]
    assert finite == [math.isfinite(entry["loss"]) for entry in plain_logs] == [True, filtered]
    assert bool(flat(model).isfinite().all()) == bool(flat(plain_model).isfinite().all())
    assert bool(flat(model).isfinite().all()) == (trainer_class is NotANumberOnce)
    # ε only needs a finite gradient
    skipped = [entry["sam_skipped"] for entry in logs]
    assert skipped == ([0.0, 0.0] if trainer_class is NotANumberOnce else [0.0, 1.0])
    if trainer_class is NotANumberOnce:
        # The run without the NaN has the same gradients, and so the same losses at updates 3 and 4
        whole, _ = recorded(SAMTrainer, alone, points(32), tmp_path, **options | {"logging_steps": 1})
        assert_same(snapshot(model), snapshot(alone))
        losses = [entry["loss"] for entry in training_logs(whole)]
        perturbed = [entry["sam_perturbed_loss"] for entry in training_logs(whole)]
        # Trainer replaces it by the mean of the losses logged so far; here there are none
        assert logs[1]["loss"] == pytest.approx(losses[3] / 2, rel=1e-6) or not filtered
        assert logs[1]["sam_perturbed_loss"] == pytest.approx(perturbed[3], rel=1e-9)


def test_resuming_with_another_batch_size_regroups(tmp_path):
    """sam_m counts examples of the batches that are loaded now, not of those before the checkpoint."""
    run = {"sam_m": 4, "save_strategy": "steps", "save_steps": 2}
    recorded(SAMTrainer, perceptron(), points(64), tmp_path, max_steps=2, per_device_train_batch_size=4, **run)
    sizes = []

    class Sizes(SAMTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            if torch.is_grad_enabled():  # slices are compared with whole micro-batches without gradients
                sizes.append(len(inputs["x"]))
            return super().compute_loss(model, inputs, *args, **kwargs)

    options = {"max_steps": 4, "per_device_train_batch_size": 8, "sam_rho": RHO, **run}
    trainer = trainer_of(perceptron(), points(64), tmp_path, trainer_class=Sizes, **options)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    # Two groups of four with two passes each, in two updates
    assert sizes == [4] * (2 * 2 * 2)
