"""What a slice weighs is measured by the loss. A loss that does not add up over slices is refused."""

from __future__ import annotations

import pytest
import torch
from causal import llama
from tiny import Perceptron, bert, flat, perceptron, points, relative_difference, sentences, trained
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import Trainer

from sam_hf.trainer.loss_weights import CHECKS

CUTS = [{"sam_m": 2}, {"sam_m": 1}, {"sam_ascent_fraction": 0.5}]
CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)


def with_class_weights(outputs, labels, num_items_in_batch=None):
    """A mean over the weights of the labels' classes."""
    return cross_entropy(outputs["logits"], labels, CLASS_WEIGHTS)


def summed_with_class_weights(outputs, labels, num_items_in_batch=None):
    total = cross_entropy(outputs["logits"], labels, CLASS_WEIGHTS, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def contrastive(outputs, labels, num_items_in_batch=None):
    """Each example against all others of the batch."""
    vectors = outputs["logits"]
    return cross_entropy(vectors @ vectors.T, torch.arange(len(vectors)))


def of_boxes(outputs, labels, num_items_in_batch=None):
    """A sum over examples, divided by a number that belongs to the whole batch: here, that of the first class."""
    per_example = cross_entropy(outputs["logits"], labels, reduction="none")
    return per_example.sum() / labels.eq(0).sum().clamp(min=1)


def per_example(outputs, labels, num_items_in_batch=None):
    """A mean over the examples: one without a label has the loss 0, and counts."""
    return cross_entropy(outputs["logits"], labels, reduction="none", ignore_index=-100).mean()


def noisy(outputs, labels, num_items_in_batch=None):
    logits = outputs["logits"]
    return cross_entropy(logits + torch.randn_like(logits), labels)


@pytest.mark.parametrize("options", CUTS, ids=str)
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (with_class_weights, "do not add up .*class weights"),
        (contrastive, "do not add up"),
        (of_boxes, "do not add up .*number of boxes"),
        (noisy, "draws no random numbers"),
    ],
)
def test_losses_that_do_not_add_up_are_refused(tmp_path, loss, message, options):
    model = perceptron()
    before = flat(model)
    with pytest.raises(ValueError, match=message) as error:
        trained(model, points(32), tmp_path, compute_loss_func=loss, max_steps=CHECKS, **options)
    assert "\n" not in str(error.value) and "Leave sam_ascent_fraction out" in str(error.value)
    assert torch.equal(flat(model), before)
    trained(perceptron(), points(32), tmp_path, compute_loss_func=loss, sam_m=4, max_steps=1)  # whole batches


@pytest.mark.parametrize("precision", ["float32", "bf16 autocast", "bf16 weights"])
def test_low_precision_tells_them_apart(tmp_path, precision):
    dtype = torch.bfloat16 if precision == "bf16 weights" else torch.float32
    weights = CLASS_WEIGHTS.float()

    def weighted(outputs, labels, num_items_in_batch=None):
        return cross_entropy(outputs["logits"].float(), labels, weights)

    def plain(outputs, labels, num_items_in_batch=None):
        return cross_entropy(outputs["logits"].float(), labels)

    run = {"bf16": precision == "bf16 autocast", "sam_m": 2, "max_steps": 2 * CHECKS}
    data = points(64, dtype)
    trained(perceptron().to(dtype), data, tmp_path, compute_loss_func=plain, **run)
    with pytest.raises(ValueError, match="do not add up"):
        trained(perceptron().to(dtype), data, tmp_path, compute_loss_func=weighted, **run)


def test_one_micro_batch_of_equal_slices_is_not_enough(tmp_path):
    """Both slices of the first micro-batches hold one example of each class."""
    same = [e | {"labels": torch.tensor(i % 2)} for i, e in enumerate(points(8))]
    other = [e | {"labels": torch.tensor(i % 4 // 2)} for i, e in enumerate(points(8))]
    with pytest.raises(ValueError, match="do not add up"):
        trained(perceptron(), same + other, tmp_path, compute_loss_func=with_class_weights, sam_m=2)


def agreement(output_dir, make_model, data, **options):
    """The relative difference of the weights after SAM with a vanishing radius and after plain training."""
    options = {"max_steps": 4, "gradient_accumulation_steps": 2} | options
    model, plain = make_model(), make_model()
    sam = {name: options.pop(name) for name in list(options) if name.startswith("sam_")}
    trainer = trained(model, data, output_dir, sam_rho=1e-13, **sam, **options)
    expected = trained(plain, data, output_dir, trainer_class=Trainer, **options)
    losses, plain_losses = ([e["loss"] for e in t.state.log_history if "loss" in e] for t in (trainer, expected))
    if "sam_m" in sam:
        assert losses == pytest.approx(plain_losses, rel=1e-6)
    return relative_difference(flat(model), flat(plain))


def unlabelled(data, *places):
    return [e | {"labels": torch.tensor(-100)} if i in places else e for i, e in enumerate(data)]


@pytest.mark.parametrize("options", CUTS, ids=str)
def test_a_sum_with_class_weights_adds_up(tmp_path, options):
    run = options | {"compute_loss_func": summed_with_class_weights}
    assert agreement(tmp_path, perceptron, points(32), **run) < 1e-11


@pytest.mark.parametrize("places", [(1,), (6,), (1, 2, 12, 13)], ids=str)
@pytest.mark.parametrize("options", CUTS, ids=str)
def test_a_mean_over_examples(tmp_path, options, places):
    """Labels that do not count tell it from a mean over labels, in whichever micro-batch they come first."""
    run = options | {"compute_loss_func": per_example}
    assert agreement(tmp_path, perceptron, unlabelled(points(32), *places), **run) < 1e-11


def test_candidates_that_begin_to_differ_late_are_told_apart_then(tmp_path, caplog):
    """From the log after the first example without a label on, the weights are those of the loss, with a warning."""
    late = CHECKS + 6
    data = unlabelled(points(4 * late + 40), *range(4 * late, 4 * late + 40, 4))
    run = {"compute_loss_func": per_example, "sam_m": 2, "sam_rho": 1e-13, "max_steps": late + 10}
    with caplog.at_level("WARNING", "sam_hf"):
        sam = trained(perceptron(), data, tmp_path, **run)
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "sam_hf.trainer.loss_weights"]
    assert "are weighted by those of its examples from now on" in warning
    del run["sam_m"]
    plain = trained(perceptron(), data, tmp_path, **run)
    losses, expected = ([e["loss"] for e in t.state.log_history if "loss" in e] for t in (sam, plain))
    assert losses[:late] == pytest.approx(expected[:late], rel=1e-6)
    assert losses[late] != pytest.approx(expected[late], rel=1e-3)
    assert losses[late + 1] == pytest.approx(expected[late + 1], rel=0.05)
    assert sam._sam_runner._weights._chosen == "examples"


class NextToken(nn.Module):
    """A language model with a mean over the next tokens, of which Trainer knows nothing."""

    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.output = nn.Embedding(24, 6), nn.Linear(6, 24)

    def forward(self, input_ids, labels=None):
        logits = self.output(torch.tanh(self.embedding(input_ids)))
        return {"loss": cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), "logits": logits}


class PerSequence(NextToken):
    """The mean over sequences of each one's mean."""

    def forward(self, input_ids, labels=None):
        logits = self.output(torch.tanh(self.embedding(input_ids)))
        losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        counts = labels.ne(-100)
        return {"loss": ((losses * counts).sum(1) / counts.sum(1)).mean(), "logits": logits}


class PerToken(NextToken):
    def forward(self, input_ids, labels=None):
        logits = self.output(torch.tanh(self.embedding(input_ids)))
        return {"loss": cross_entropy(logits.transpose(1, 2), labels), "logits": logits}


def documents(size, lengths=(2, 7, 3, 5)):
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(size):
        ids = torch.randint(0, 24, (7,), generator=generator)
        rows.append({"input_ids": ids, "labels": ids.masked_fill(torch.arange(7) >= lengths[i % len(lengths)], -100)})
    return rows


@pytest.mark.parametrize("options", CUTS, ids=str)
@pytest.mark.parametrize("model", [NextToken, PerSequence, PerToken])
def test_means_over_tokens_and_sequences(tmp_path, model, options):
    assert agreement(tmp_path, lambda: model().double(), documents(32), **options) < 1e-11


@pytest.mark.parametrize("options", CUTS, ids=str)
def test_lengths_that_tell_nothing_at_first(tmp_path, options):
    """All of the sequences of the first epoch's beginning are of one length."""
    data = documents(16, (5,)) + documents(16)
    assert agreement(tmp_path, lambda: PerSequence().double(), data, max_steps=5, **options) < 1e-11


@pytest.mark.parametrize("accepts_loss_kwargs", [True, False], ids=["sum", "mean"])
@pytest.mark.parametrize("options", [{"sam_m": 1}, {"sam_m": 2}], ids=str)
def test_a_causal_language_model(tmp_path, options, accepts_loss_kwargs):
    def make():
        model = llama()
        model.accepts_loss_kwargs = accepts_loss_kwargs
        return model

    rows = [{"input_ids": e["input_ids"].clamp(3, 16), "labels": e["labels"].clamp(min=-100)} for e in documents(32)]
    rows = [e | {"labels": torch.where(e["labels"] == -100, -100, e["input_ids"])} for e in rows]
    assert agreement(tmp_path, make, rows, **options) < 1e-10


class Squared(Perceptron):
    def forward(self, x, labels=None):
        logits = self.second(self.dropout(torch.tanh(self.middle(self.first(x)))))
        return {"loss": mse_loss(logits, labels), "logits": logits}


def squared():
    torch.manual_seed(0)
    return Squared().double()


@pytest.mark.parametrize("options", CUTS, ids=str)
def test_real_valued_labels(tmp_path, options):
    data = [{"x": e["x"], "labels": e["x"][:3].flip(0)} for e in points(32)]
    assert agreement(tmp_path, squared, data, **options) < 1e-11


@pytest.mark.parametrize(
    "middle, options",
    [
        *((nn.Identity, options) for options in CUTS),
        # One example has no batch statistics
        *((lambda: nn.BatchNorm1d(6), options) for options in CUTS if options != {"sam_m": 1}),
    ],
)
def test_dropout_and_batch_norm_are_no_reason_to_refuse(tmp_path, middle, options):
    """And the comparison leaves no trace: the run is the same without it."""
    weights = []
    for checks in (CHECKS, 0):
        model = perceptron(middle, dropout=0.3)
        trainer_options = {"sam_rho": 0.2, "max_steps": 6, "gradient_accumulation_steps": 2} | options
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sam_hf.trainer.loss_weights.CHECKS", checks)
            trained(model, points(48), tmp_path, **trainer_options)
        assert all(module.training and "train" not in vars(module) for module in model.modules())
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class WithoutLossInEvaluation(Perceptron):
    def forward(self, x, labels=None):
        outputs = super().forward(x, labels)
        return outputs if self.training else {"logits": outputs["logits"]}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_model_that_has_a_loss_in_training_only(tmp_path, dropout):
    """Without random numbers it is compared in training mode; with dropout it cannot be."""
    torch.manual_seed(0)
    model = WithoutLossInEvaluation(dropout=dropout).double()
    if not dropout:
        trained(model, points(16), tmp_path, sam_m=2, max_steps=2)
        return
    with pytest.raises(ValueError, match="need a loss that can be computed in evaluation mode"):
        trained(model, points(16), tmp_path, sam_m=2, max_steps=2)


def test_a_batch_of_one_example_has_no_slices(tmp_path):
    """The fraction chooses whole micro-batches, and nothing is compared."""
    run = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "sam_ascent_fraction": 0.5}
    trained(bert(), sentences(16), tmp_path, max_steps=2, **run)
