"""SAM in sentence-transformers: losses that have parameters, return named parts, or cache gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from causal import logged, run_with, with_sam
from datasets import DatasetDict
from embeddings import cross_encoder, embedder, pairs, sparse_encoder
from tiny import flat, relative_difference
from torch import nn

st = pytest.importorskip("sentence_transformers")
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

PLAIN = (st.SentenceTransformerTrainer, st.SentenceTransformerTrainingArguments)
SAM = with_sam(*PLAIN)


def softmax(model):
    torch.manual_seed(2)
    return losses.SoftmaxLoss(model, 8, num_labels=3).double()


class InParts(nn.Module):
    """A loss that returns its terms by name."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.ranking = losses.MultipleNegativesRankingLoss(model, scale=2.0)

    def forward(self, features, labels):
        size = self.model(dict(features[0]))["sentence_embedding"].pow(2).mean()
        return {"ranking": self.ranking(features, labels), "size": 0.1 * size}


def ranking(model):
    return losses.MultipleNegativesRankingLoss(model, scale=2.0)


def cached(model):
    return losses.CachedMultipleNegativesRankingLoss(model, scale=2.0, mini_batch_size=2)


def float32_labels_fit_a_float64_model() -> bool:
    """In torch 2.7 they do not: there the squared error of two types has no backward pass."""
    output = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    try:
        torch.nn.functional.mse_loss(output, torch.ones(1)).backward()
    except RuntimeError:
        return False
    return True


CASES = {
    "softmax": (softmax, "class"),
    "ranking": (ranking, None),
    "cosine": (losses.CosineSimilarityLoss, "similarity"),
    "parts": (InParts, None),
    "cached": (cached, None),
}
if not float32_labels_fit_a_float64_model():
    del CASES["cosine"]


@pytest.mark.parametrize("case", CASES)
def test_plain_trainer_at_vanishing_rho(tmp_path, case):
    make, label = CASES[case]
    expected = make(embedder(tmp_path / "model", dropout=0.3))
    model = copy.deepcopy(expected)
    options = {"gradient_accumulation_steps": 2, "learning_rate": 0.5}
    plain = run_with(PLAIN, expected.model, pairs(16, label), tmp_path, loss=expected, **options)
    sam = run_with(SAM, model.model, pairs(16, label), tmp_path, loss=model, sam_rho=1e-12, **options)
    torch.testing.assert_close(torch.tensor(logged(sam, "loss")), torch.tensor(logged(plain, "loss")))
    torch.testing.assert_close(flat(model), flat(expected), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_update_of_a_hand_written_loop(tmp_path, case):
    """ε and the update also cover the parameters of the loss."""
    make, label = CASES[case]
    model = make(embedder(tmp_path / "model"))
    reference = copy.deepcopy(model)
    start = flat(model)
    batches = []

    class Recording(SAM[0]):
        def compute_loss(self, model, inputs, *args, **kwargs):
            features, labels = self.collect_features(dict(inputs))
            batches.append(([dict(feature) for feature in features], labels))
            return super().compute_loss(model, inputs, *args, **kwargs)

    options = {"max_steps": 1, "learning_rate": 0.5, "sam_rho": 0.3, "gradient_accumulation_steps": 2}
    run_with((Recording, SAM[1]), model.model, pairs(8, label), tmp_path, loss=model, **options)
    assert len(batches) == 4

    plain = gradient(reference, batches[:2])
    with torch.no_grad():
        norm = torch.cat([g.flatten() for g in plain]).norm()
        for p, g in zip(reference.parameters(), plain, strict=True):
            p += 0.3 * g / norm
    step = torch.cat([-0.5 * g.flatten() for g in gradient(reference, batches[:2])])
    assert relative_difference(flat(model) - start, step) < 1e-8
    assert relative_difference(torch.cat([-0.5 * g.flatten() for g in plain]), step) > 1e-3


def gradient(loss, batches):
    """
    Return the gradient of the mean over micro-batches for each parameter.

    It is zero for a parameter that the loss does not reach, such as BERT's own pooler.
    """
    loss.zero_grad()
    for features, labels in batches:
        value = loss([dict(feature) for feature in features], labels)
        value = sum(value.values()) if isinstance(value, dict) else value
        (value / len(batches)).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in loss.parameters()]


@pytest.mark.parametrize("targets", ["all", "no_norm", "norm", ["query"]], ids=str)
def test_parameters_of_the_loss_are_perturbed(tmp_path, targets):
    """They belong neither to the model's normalisation layers nor to its named modules."""
    seen = []

    class Recording(losses.SoftmaxLoss):
        def forward(self, *args):
            seen.append(self.classifier.weight.detach().clone())
            return super().forward(*args)

    loss = Recording(embedder(tmp_path / "model"), 8, num_labels=3)
    options = {"max_steps": 1, "sam_rho": 0.3, "sam_target_modules": targets}
    run_with(SAM, loss.model, pairs(4, "class"), tmp_path, loss=loss, **options)
    before, perturbed = seen
    if targets in ("all", "no_norm"):
        assert 0.01 < (perturbed - before).norm() < 0.3
    else:
        assert torch.equal(perturbed, before)


@pytest.mark.parametrize("options", [{}, {"sam_ascent_steps": 2}], ids=str)
def test_parts_of_a_loss_are_logged_once(tmp_path, options):
    loss = InParts(embedder(tmp_path / "model"))
    common = {"gradient_accumulation_steps": 2, "learning_rate": 0.0, "logging_steps": 2, "max_steps": 4}
    run = {"data": pairs(16), "output_dir": tmp_path, "loss": loss} | common
    plain = run_with(PLAIN, loss.model, **run)
    sam = run_with(SAM, loss.model, **run, sam_rho=1.0, **options)
    assert logged(sam, "loss", "ranking", "size") == logged(plain, "loss", "ranking", "size")
    # Rounded to four digits, as logged
    parts = torch.tensor(logged(sam, "ranking", "size"))
    torch.testing.assert_close(parts.sum(1), torch.tensor(logged(sam, "loss"))[:, 0], rtol=0, atol=2e-4)
    assert abs(logged(sam, "sam_sharpness")[0][0]) > 1e-2


@pytest.mark.parametrize("m", [None, 4])
def test_cached_gradients_are_those_of_the_whole_batch(tmp_path, m):
    """GradCache embeds again in its backward hook; in the descent pass, it must do so at w + ε."""
    whole = ranking(embedder(tmp_path / "model"))
    parts = cached(copy.deepcopy(whole.model))
    options = {"gradient_accumulation_steps": 2, "learning_rate": 0.5, "sam_rho": 0.3, "sam_m": m}
    run_with(SAM, whole.model, pairs(16), tmp_path, loss=whole, **options)
    run_with(SAM, parts.model, pairs(16), tmp_path, loss=parts, **options)
    torch.testing.assert_close(flat(parts), flat(whole), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("options", [{"sam_m": 2}, {"sam_ascent_fraction": 0.5}], ids=str)
@pytest.mark.parametrize("make", [ranking, cached])
def test_slices_of_a_loss_with_negatives_of_the_batch_are_refused(tmp_path, make, options):
    """A slice has fewer negatives, so its loss is another one."""
    loss = make(embedder(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"losses of slices do not add up .*negatives within the batch"):
        run_with(SAM, loss.model, pairs(16), tmp_path, loss=loss, sam_rho=0.3, **options)


def test_slices_of_a_loss_over_pairs(tmp_path):
    weights = []
    for options in ({"sam_rho": 1e-13, "sam_m": 2}, {"sam_method": "none"}):
        loss = losses.CosineSimilarityLoss(embedder(tmp_path / "model"))
        run_with(SAM, loss.model, pairs(16, "similarity"), tmp_path, loss=loss, learning_rate=0.5, **options)
        weights.append(flat(loss))
    assert relative_difference(*weights) < 1e-10


def test_losses_of_several_datasets(tmp_path):
    """In a window over two datasets, each loss with its parameters gets a gradient from its own batches only."""
    data = DatasetDict(classes=pairs(16, "class"), ranked=pairs(16))

    def train(classes, sam_rho=None):
        model = embedder(tmp_path / "model")
        loss = {"classes": softmax(model), "ranked": ranking(model)}
        options = {"sam_rho": sam_rho} if sam_rho else {}
        options |= {"gradient_accumulation_steps": 2, "learning_rate": 0.5}
        run_with(classes, model, data, tmp_path, loss=loss, multi_dataset_batch_sampler="round_robin", **options)
        return flat(loss["classes"])

    expected = train(PLAIN)
    torch.testing.assert_close(train(SAM, sam_rho=1e-12), expected, rtol=1e-9, atol=1e-10)
    assert relative_difference(train(SAM, sam_rho=0.3), expected) > 1e-3


def cross_encoder_case(folder):
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    classes = (st.CrossEncoderTrainer, st.CrossEncoderTrainingArguments)
    return classes, BinaryCrossEntropyLoss(cross_encoder(folder)), "similarity"


def sparse_encoder_case(folder):
    from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss

    classes = (st.SparseEncoderTrainer, st.SparseEncoderTrainingArguments)
    model = sparse_encoder(folder)
    inner = SparseMultipleNegativesRankingLoss(model)
    return classes, SpladeLoss(model, inner, document_regularizer_weight=0.1, query_regularizer_weight=0.1), None


@pytest.mark.parametrize("case", [cross_encoder_case, sparse_encoder_case], ids=["cross encoder", "sparse encoder"])
def test_the_other_trainers(tmp_path, case):
    classes, expected, label = case(tmp_path / "model")
    model = copy.deepcopy(expected)
    perturbed = copy.deepcopy(expected)
    options = {"gradient_accumulation_steps": 2, "learning_rate": 0.05, "logging_steps": 3}
    plain = run_with(classes, expected.model, pairs(16, label), tmp_path, loss=expected, **options)
    sam = run_with(with_sam(*classes), model.model, pairs(16, label), tmp_path, loss=model, sam_rho=1e-12, **options)
    names = [name for name in plain.state.log_history[0] if name not in ("grad_norm", "learning_rate")]
    torch.testing.assert_close(torch.tensor(logged(sam, *names)), torch.tensor(logged(plain, *names)))
    torch.testing.assert_close(flat(model), flat(expected), rtol=1e-7, atol=1e-8)
    run_with(with_sam(*classes), perturbed.model, pairs(16, label), tmp_path, loss=perturbed, sam_rho=0.3, **options)
    assert relative_difference(flat(perturbed), flat(expected)) > 1e-4
