"""The loss, its gradient and its Hessian are those of the examples, however they are batched."""

from __future__ import annotations

import pytest
import torch
from exact import batch_of, batches_of, exact_hessian, oracle_of, quadratic, whole_matrix
from tiny import bert, perceptron, points, sentences, summed_cross_entropy, trainer_of
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from sam_hf.sharpness import LossOracle


def flat_gradient(model, data):
    loss = model.eval()(**batch_of(data))["loss"]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("size", [10, 4, 3, 1])
@pytest.mark.parametrize("middle", [None, lambda: nn.BatchNorm1d(6)], ids=["plain", "batch norm"])
def test_several_batches_are_one_batch(middle, size):
    """This holds for unequal sizes too. Dropout is off, and BatchNorm uses its running statistics."""
    model, data = perceptron(middle, dropout=0.5), points(10)
    if middle:
        model.middle(torch.randn(50, 6, dtype=torch.float64))  # changes the initial statistics
    oracle = oracle_of(model, data, size)
    torch.testing.assert_close(whole_matrix(oracle), exact_hessian(model, data), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(oracle.gradient(), flat_gradient(model, data), rtol=1e-10, atol=1e-14)
    assert oracle.loss() == pytest.approx(model.eval()(**batch_of(data))["loss"].item(), rel=1e-12)


def test_finite_differences_agree_with_double_backward():
    model = perceptron()
    exact = whole_matrix(oracle_of(model, product="double_backward"))
    differences = whole_matrix(oracle_of(model, product="finite_difference"))
    torch.testing.assert_close(differences, exact, rtol=0, atol=1e-8 * float(exact.norm()))
    assert not torch.equal(differences, exact)
    # The length of a vector changes the product but not the step
    oracle = oracle_of(model, product="finite_difference")
    v = torch.randn(oracle.dimension, dtype=torch.float64)
    torch.testing.assert_close(oracle.hvp(1e6 * v), 1e6 * oracle.hvp(v), rtol=1e-6, atol=1e-3)
    assert not oracle.hvp(0 * v).any()


def test_finite_differences_in_float32():
    model = perceptron().float()
    exact = whole_matrix(oracle_of(model, points(10, torch.float32)))
    differences = whole_matrix(oracle_of(model, points(10, torch.float32), product="finite_difference"))
    assert float((differences - exact).norm() / exact.norm()) < 2e-3


def test_adapters_of_lora_alone():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=1, target_modules=["query"], init_lora_weights=False)
    torch.manual_seed(0)
    # The classifier is not trained
    config.modules_to_save = []
    model = peft.get_peft_model(bert(attn_implementation="sdpa"), config).double()
    data = sentences(5)
    oracle = oracle_of(model, data, 2)
    assert oracle.parameters and all("lora_" in name or "classifier" in name for name in oracle.parameters)
    eager = peft.get_peft_model(bert(attn_implementation="eager"), config).double()
    eager.load_state_dict(model.state_dict())
    torch.testing.assert_close(whole_matrix(oracle), exact_hessian(eager, data), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        lambda m: torch.compile(nn.DataParallel(m)),
        lambda m: nn.DataParallel(torch.compile(m)),
    ],
    ids=["compiled", "parallel", "compiled after", "compiled before"],
)
def test_wrappers_are_removed(wrap):
    """DataParallel stands for DDP here, which needs a process group."""
    model = perceptron()
    wrapped = wrap(model)
    names = list(wrapped.state_dict())
    oracle = oracle_of(wrapped)
    assert oracle.model is model and list(oracle.parameters) == list(dict(model.named_parameters()))
    assert list(wrapped.state_dict()) == names  # the wrapper itself is as it was


def test_chosen_parameters():
    model, data = perceptron(), points(10)
    model.second.weight.requires_grad_(False)
    names = ["second.weight"]
    torch.testing.assert_close(
        whole_matrix(oracle_of(model, data, parameters=names)), exact_hessian_of(model, data, names)
    )
    assert not model.second.weight.requires_grad
    assert "second.weight" not in oracle_of(model, data).parameters
    with pytest.raises(ValueError, match=r"has no parameter 'third\.weight'"):
        oracle_of(model, data, parameters=["third.weight"])


def exact_hessian_of(model, data, names):
    model.second.weight.requires_grad_(True)
    try:
        return exact_hessian(model, data, names)
    finally:
        model.second.weight.requires_grad_(False)


def test_a_loss_that_is_linear_has_no_curvature():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return {"loss": (x @ self.w).mean()}

    oracle = LossOracle(Linear(), [{"x": torch.randn(4, 3, dtype=torch.float64)}])
    assert not oracle.hvp(torch.ones(3, dtype=torch.float64)).any()


def test_unused_parameters_have_zero_rows():
    model, data = perceptron(), points(10)
    model.spare = nn.Linear(2, 1).double()
    oracle = oracle_of(model, data)
    matrix = whole_matrix(oracle)
    assert not matrix[-3:].any() and not matrix[:, -3:].any()
    torch.testing.assert_close(matrix[:-3, :-3], exact_hessian(perceptron(), data))


def test_products_of_several_vectors():
    oracle = quadratic(range(10))
    vectors = torch.randn(3, 10, dtype=torch.float64)
    torch.testing.assert_close(oracle.hvp(vectors), vectors @ oracle.model.matrix)
    torch.testing.assert_close(oracle.hvp(vectors)[1], oracle.hvp(vectors[1]))
    with pytest.raises(ValueError, match=r"vectors.shape=\(9,\) is not allowed: it must be \(10,\) or \(k, 10\)"):
        oracle.hvp(torch.ones(9, dtype=torch.float64))


def test_max_examples_are_drawn_under_the_seed():
    data = points(40)
    loader = DataLoader(data, batch_size=4, shuffle=True)

    def drawn(**options):
        oracle = LossOracle(perceptron(), loader, **options)
        return torch.cat([batch["x"] for batch in oracle.batches])

    first = drawn(max_examples=10)
    assert len(first) == 10
    assert torch.equal(first, drawn(max_examples=10))
    assert not torch.equal(first, drawn(max_examples=10, seed=1))
    rows = {tuple(row.tolist()) for row in first}
    assert len(rows) == 10 and rows <= {tuple(e["x"].tolist()) for e in data}
    assert not torch.equal(first, torch.stack([e["x"] for e in data[:10]]))  # not just the first ones
    assert len(drawn(max_examples=100)) == 40


def test_max_examples_of_any_iterable_are_its_first():
    data = points(10)
    oracle = LossOracle(perceptron(), batches_of(data, 4), max_examples=6)
    assert [len(batch["x"]) for batch in oracle.batches] == [4, 2]
    assert oracle.loss() == pytest.approx(oracle_of(perceptron(), data[:6], 6).loss(), rel=1e-12)


def test_a_shuffling_loader_is_read_once():
    """All products use one matrix, although another reading would give another order and augmentation."""

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return {"x": torch.randn(5, dtype=torch.float64), "labels": torch.tensor(index % 3)}

    oracle = LossOracle(perceptron(), DataLoader(Noisy(), batch_size=4, shuffle=True))
    assert oracle.loss() == oracle.loss()
    assert oracle.loss() == LossOracle(perceptron(), DataLoader(Noisy(), batch_size=4, shuffle=True)).loss()


def test_what_the_forward_pass_draws_is_the_same_in_every_pass():
    class Drawing(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    oracle = oracle_of(perceptron(Drawing))
    matrix = whole_matrix(oracle)
    assert torch.equal(matrix, whole_matrix(oracle))
    torch.testing.assert_close(matrix, matrix.T)


@pytest.mark.parametrize("compute_loss", [None, summed_cross_entropy], ids=["model's loss", "compute_loss_func"])
def test_the_loss_of_trainer(tmp_path, compute_loss):
    """It equals what Trainer's own evaluation reports."""
    data = points(10)
    trainer = trainer_of(
        perceptron(),
        data,
        tmp_path,
        trainer_class=Trainer,
        compute_loss_func=compute_loss,
        per_device_eval_batch_size=4,
    )
    expected = trainer.evaluate(data)["eval_loss"]
    oracle = LossOracle.from_trainer(trainer)
    assert oracle.loss() == pytest.approx(expected, rel=1e-7)
    assert [len(batch["x"]) for batch in oracle.batches] == [4, 4, 2]
    torch.testing.assert_close(whole_matrix(oracle), exact_hessian(perceptron(), data))
    assert trainer.args.average_tokens_across_devices  # as it was


def test_label_smoothing_of_trainer(tmp_path):
    smoothed = {"label_smoothing_factor": 0.3, "per_device_eval_batch_size": 4}
    trainer = trainer_of(bert(), sentences(10), tmp_path, trainer_class=Trainer, **smoothed)
    oracle = LossOracle.from_trainer(trainer)
    assert oracle.loss() == pytest.approx(trainer.evaluate(sentences(10))["eval_loss"], rel=1e-7)
    assert oracle.loss() != pytest.approx(oracle_of(bert(), sentences(10)).loss(), rel=1e-3)


def test_a_loss_of_ones_own():
    def loss(model, batch):
        x, y = batch
        return nn.functional.mse_loss(model(x), y)

    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 1).double(), torch.randn(8, 3).double(), torch.randn(8, 1).double()
    oracle = LossOracle(model, DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=3), loss=loss)
    rows = torch.cat([x, torch.ones(8, 1)], 1)
    torch.testing.assert_close(whole_matrix(oracle), 2 * rows.T @ rows / 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": perceptron().bfloat16()}, "float32"),
        ({"model": perceptron().half()}, "float32"),
        ({"model": perceptron().requires_grad_(False)}, "none has requires_grad"),
        ({"dataloader": []}, "no example"),
        ({"max_examples": 0}, "max_examples=0"),
        ({"product": "exact"}, "product='exact' is not allowed: it must be one of auto"),
        ({"finite_difference_step": 0.0}, "finite_difference_step=0.0"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refused(change, message):
    arguments = {"model": perceptron(), "dataloader": batches_of(points(8), 4)} | change
    with pytest.raises(ValueError, match=message):
        LossOracle(**arguments)


def test_batches_without_labels_are_told(tmp_path):
    batches = [{"x": batch["x"]} for batch in batches_of(points(8), 4)]
    with pytest.raises(ValueError, match="returned no loss for a batch of x"):
        LossOracle(perceptron(), batches).loss()
