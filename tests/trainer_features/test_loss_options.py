"""Trainer's options for the loss act on SAM's loss in every pass; those for the gradient act once on its gradient."""

from __future__ import annotations

import pytest
import reference
import torch
from by_hand import RandomStates, mean_of_means, real_optimizer, sum_of_means, train_by_hand, training_logs
from tiny import (
    bert,
    flat,
    loss_of,
    perceptron,
    points,
    relative_difference,
    sentences,
    summed_cross_entropy,
    trainer_of,
    windows_of,
)
from torch.nn.functional import cross_entropy

from sam_hf import SAMTrainer

RHO, UPDATES, BATCH = 0.2, 6, 4
RATE, MOMENTUM = 0.05, 0.9
RUN = {
    "optim": "sgd",
    "optim_args": f"momentum={MOMENTUM}",
    "learning_rate": RATE,
    "lr_scheduler_type": "linear",
    "max_steps": UPDATES,
}


def sam_run(model, data, output_dir, accumulation, compute_loss_func=None, trainer_class=SAMTrainer, **options):
    run = RUN | {"sam_rho": RHO, "gradient_accumulation_steps": accumulation} | options
    trainer = trainer_of(
        model, data, output_dir, trainer_class=trainer_class, compute_loss_func=compute_loss_func, **run
    )
    trainer.train()
    return trainer


def by_hand(model, data, output_dir, accumulation, **options):
    optimizer, scheduler = real_optimizer(model, data, output_dir, UPDATES, **RUN)
    windows = windows_of(data, BATCH, accumulation, UPDATES)
    return train_by_hand(model, windows, optimizer, scheduler, **({"rho": RHO} | options))


def assert_logged(trainer, history):
    for entry, update in zip(training_logs(trainer), history, strict=True):
        # Trainer sums up the loss in float32
        assert entry["loss"] == pytest.approx(update.loss, rel=1e-6)
        assert entry["sam_perturbed_loss"] == pytest.approx(update.perturbed_loss, rel=1e-8)
        assert entry["sam_ascent_grad_norm"] == pytest.approx(update.ascent_norm, rel=1e-8)
        assert entry["grad_norm"] == pytest.approx(update.grad_norm, rel=1e-8)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.3, 100.0])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_max_grad_norm_clips_the_update_gradient(tmp_path, accumulation, max_grad_norm):
    data, model, expected = points(40), perceptron(), perceptron()
    trainer = sam_run(model, data, tmp_path, accumulation, max_grad_norm=max_grad_norm)
    history = by_hand(expected, data, tmp_path, accumulation, max_grad_norm=max_grad_norm)
    assert relative_difference(flat(model), flat(expected)) < 1e-9
    # The logged norm is that of the clipped gradient, before clipping
    assert_logged(trainer, history)
    clipped = [update.grad_norm > max_grad_norm > 0 for update in history]
    assert all(clipped) if max_grad_norm == 0.3 else not any(clipped)


@pytest.mark.parametrize("options", [{}, {"sam_ascent_steps": 3}, {"sam_m": 4}, {"sam_m": 2}], ids=str)
def test_one_clip_per_update(tmp_path, options):
    clipped = []

    class Counting(SAMTrainer):
        def _clip_grad_norm(self, model):
            norm = super()._clip_grad_norm(model)
            clipped.append((self.state.global_step, float(norm)))
            return norm

    trainer = sam_run(perceptron(), points(40), tmp_path, 2, trainer_class=Counting, max_grad_norm=0.3, **options)
    logged = [entry["grad_norm"] for entry in training_logs(trainer)]
    assert clipped == list(enumerate(logged))


SMOOTHING = 0.3


def smoothed(model, batch, window):
    """Return the smoothed loss; Trainer's smoother gets the number of labels in the window."""
    logits = model(**{key: value for key, value in batch.items() if key != "labels"})["logits"]
    loss = cross_entropy(logits, batch["labels"], label_smoothing=SMOOTHING, reduction="sum")
    return loss / sum(len(other["labels"]) for other in window)


def unsmoothed(model, batch, window):
    return model(**batch)["loss"] * len(batch["labels"]) / sum(len(other["labels"]) for other in window)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_label_smoothing(tmp_path, accumulation):
    data, model, expected, other = sentences(22), bert(), bert(), bert()
    trainer = sam_run(model, data, tmp_path, accumulation, label_smoothing_factor=SMOOTHING)
    history = by_hand(expected, data, tmp_path, accumulation, loss=smoothed)
    by_hand(other, data, tmp_path, accumulation, loss=unsmoothed)
    # Trainer's smoother sums in float32
    assert relative_difference(flat(model), flat(expected)) < 1e-5
    assert relative_difference(flat(other), flat(expected)) > 1e-3
    for entry, update in zip(training_logs(trainer), history, strict=True):
        assert entry["loss"] == pytest.approx(update.loss, rel=1e-5)
        assert entry["sam_perturbed_loss"] == pytest.approx(update.perturbed_loss, rel=1e-5)


class Smoothed(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, labels):
        logits = self.model(input_ids, attention_mask)["logits"]
        return {"loss": cross_entropy(logits, labels, label_smoothing=SMOOTHING)}


def test_label_smoothing_of_slices(tmp_path):
    """With groups smaller than a micro-batch, each is smoothed, and its labels give its weight."""
    data, model, start = sentences(22), bert(), Smoothed(bert())
    sam_run(model, data, tmp_path, 2, label_smoothing_factor=SMOOTHING, sam_m=2)
    rates = [RATE * (UPDATES - update) / UPDATES for update in range(UPDATES)]
    windows = [reference.equal_weights(window) for window in windows_of(data, BATCH, 2, UPDATES)]
    optimizer = reference.SGD(MOMENTUM)
    expected, _ = reference.train(loss_of(start), flat(start), windows, optimizer, rates, BATCH, RHO, m=2)
    assert relative_difference(flat(model), expected) < 1e-5


def mean_over_the_window(model, batch, window):
    total = sum(len(other["labels"]) for other in window)
    return cross_entropy(model(batch["x"])["logits"], batch["labels"], reduction="sum") / total


@pytest.mark.parametrize("accumulation", [1, 2])
def test_compute_loss_func(tmp_path, accumulation):
    # The last micro-batch of an epoch has two examples: a mean of means would give them double weight
    data, model, expected, means = points(22), perceptron(), perceptron(), perceptron()
    trainer = sam_run(model, data, tmp_path, accumulation, compute_loss_func=summed_cross_entropy)
    history = by_hand(expected, data, tmp_path, accumulation, loss=mean_over_the_window)
    assert relative_difference(flat(model), flat(expected)) < 1e-9
    assert_logged(trainer, history)
    by_hand(means, data, tmp_path, accumulation, loss=mean_of_means)
    assert (relative_difference(flat(means), flat(expected)) > 1e-4) == (accumulation == 2)


class Penalised(SAMTrainer):
    """Adds a term of the weights themselves to the loss of the model."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = loss + 0.1 * sum(p.abs().sum() for p in model.parameters())
        return (loss, outputs) if return_outputs else loss


def penalised(model, batch, window):
    return (model(**batch)["loss"] + 0.1 * sum(p.abs().sum() for p in model.parameters())) / len(window)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_overridden_compute_loss(tmp_path, accumulation):
    data, model, expected = points(40), perceptron(), perceptron()
    trainer = sam_run(
        model,
        data,
        tmp_path,
        accumulation,
        trainer_class=Penalised,
        eval_dataset=points(8),
        eval_strategy="steps",
        eval_steps=3,
    )
    history = by_hand(expected, data, tmp_path, accumulation, loss=penalised)
    assert relative_difference(flat(model), flat(expected)) < 1e-9
    assert_logged(trainer, history)


# The noise is 3/√(6·24) = 1/4, which is exact: otherwise Trainer's float32 root would round
ALPHA = 3.0


def with_noise(model):
    """
    Add the noise of NEFTune to the embeddings (arXiv 2310.05914, algorithm 1).

    It is uniform and of size alpha / sqrt(length * width).
    """

    def add_noise(module, inputs, output):
        size = ALPHA / (output.shape[1] * output.shape[2]) ** 0.5
        return output + torch.zeros_like(output).uniform_(-size, size)

    model.bert.embeddings.word_embeddings.register_forward_hook(add_noise)
    return model


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_neftune_adds_the_same_noise_in_both_passes(tmp_path, accumulation, dropout):
    data, model, states = sentences(40), bert(dropout, hidden_size=24), RandomStates()
    trainer = sam_run(model, data, tmp_path, accumulation, neftune_noise_alpha=ALPHA, callbacks=[states])
    expected, quiet = with_noise(bert(dropout, hidden_size=24)), bert(dropout, hidden_size=24)
    options = {"loss": sum_of_means, "random_states": states.states}
    history = by_hand(expected, data, tmp_path, accumulation, **options)
    by_hand(quiet, data, tmp_path, accumulation, **options)
    assert relative_difference(flat(model), flat(expected)) < 1e-8
    assert relative_difference(flat(quiet), flat(expected)) > 1e-3
    assert_logged(trainer, history)
    # Trainer removes its hook again
    assert not model.bert.embeddings.word_embeddings._forward_hooks


def test_neftune_without_replay_has_other_noise_in_each_pass(tmp_path):
    data, states, model = sentences(40), RandomStates(), bert(hidden_size=24)
    sam_run(model, data, tmp_path, 1, neftune_noise_alpha=ALPHA, callbacks=[states], sam_replay_rng=False)
    replayed = with_noise(bert(hidden_size=24))
    by_hand(replayed, data, tmp_path, 1, loss=sum_of_means, random_states=states.states)
    assert relative_difference(flat(model), flat(replayed)) > 1e-3
