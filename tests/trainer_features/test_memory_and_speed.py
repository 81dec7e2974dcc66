"""Trainer's options for memory and speed do not change SAM's result, and cost no more than in plain training."""

from __future__ import annotations

import pytest
import torch
import transformers.trainer
from by_hand import training_logs
from tiny import bert, flat, perceptron, points, relative_difference, sentences, trained, trainer_of
from torch import nn
from torch._dynamo.utils import counters
from transformers import Trainer, TrainerCallback

from sam_hf import SAMTrainer

RUN = {"sam_rho": 0.2, "max_steps": 6, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 1.0}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class FixAfterFirstUpdate(TrainerCallback):
    """Makes a recompilation an error from the second update on."""

    def __init__(self):
        self.stance = None
        self.graphs = 0

    def on_step_end(self, args, state, control, **kwargs):
        if self.stance is None:
            self.graphs = counters["stats"]["unique_graphs"]
            self.stance = torch.compiler.set_stance("fail_on_recompile")
            self.stance.__enter__()

    def on_train_end(self, *args, **kwargs):
        self.stance.__exit__(None, None, None)


MODELS = {
    "perceptron": (perceptron, points),
    "batch norm": (lambda: perceptron(lambda: nn.BatchNorm1d(6)), points),
    "frozen batch norm": (lambda: perceptron(lambda: nn.BatchNorm1d(6)), points),
    "dropout": (lambda: perceptron(dropout=0.3), points),
    "bert": (lambda: bert(dropout=0.2), sentences),
}


@pytest.mark.parametrize("options", [{}, {"sam_ascent_steps": 2, "gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_torch_compile_compiles_once(tmp_path, kind, options):
    make, data = MODELS[kind]
    eager, compiled, after_first = make(), make(), FixAfterFirstUpdate()
    options = options | {"sam_batch_norm": "frozen" if kind.startswith("frozen") else "first"}
    trained(eager, data(24), tmp_path, **RUN, **options)
    assert counters["stats"]["unique_graphs"] == 0
    trainer = trained(
        compiled,
        data(24),
        tmp_path,
        callbacks=[after_first],
        torch_compile=True,
        torch_compile_backend="aot_eager",
        **RUN,
        **options,
    )
    assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule)
    assert after_first.graphs > 0
    assert counters["stats"]["unique_graphs"] == after_first.graphs
    assert relative_difference(flat(compiled), flat(eager)) < 1e-9
    for name, buffer in compiled.named_buffers():
        torch.testing.assert_close(buffer, eager.get_buffer(name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["batch norm", "dropout"])
def test_torch_compile_makes_the_graphs_of_plain_training(tmp_path, kind):
    make, data = MODELS[kind]
    graphs = []
    for trainer_class in (Trainer, SAMTrainer):
        torch._dynamo.reset()
        counters.clear()
        trained(
            make(),
            data(24),
            tmp_path,
            trainer_class=trainer_class,
            torch_compile=True,
            torch_compile_backend="aot_eager",
            gradient_accumulation_steps=2,
            **RUN,
        )
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_torch_empty_cache_steps(tmp_path, monkeypatch, accumulation):
    """The cache is emptied in the passes of the same updates as in plain training."""
    emptied = []

    def run(trainer_class):
        trainer = trainer_of(
            perceptron(),
            points(24),
            tmp_path,
            trainer_class=trainer_class,
            torch_empty_cache_steps=3,
            gradient_accumulation_steps=accumulation,
            **RUN,
        )
        emptied.clear()
        monkeypatch.setattr(
            transformers.trainer, "clear_device_cache", lambda *_: emptied.append(trainer.state.global_step)
        )
        trainer.train()
        return list(emptied), flat(trainer.model)

    plain, _ = run(Trainer)
    passes, weights = run(SAMTrainer)
    assert plain == [step for step in (0, 3) for _ in range(accumulation)]
    assert passes == [step for step in (0, 3) for _ in range(2 * accumulation)]
    without = perceptron()
    trained(without, points(24), tmp_path, gradient_accumulation_steps=accumulation, **RUN)
    assert torch.equal(weights, flat(without))


@pytest.mark.parametrize("reentrant", [True, False])
def test_both_kinds_of_activation_checkpointing(tmp_path, reentrant):
    plain, checkpointed = bert(dropout=0.3), bert(dropout=0.3)
    run = RUN | {"gradient_accumulation_steps": 2}
    expected = trained(plain, sentences(24), tmp_path, **run)
    actual = trained(
        checkpointed,
        sentences(24),
        tmp_path,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": reentrant},
        **run,
    )
    assert relative_difference(flat(checkpointed), flat(plain)) < 1e-9
    losses = [[entry["sam_perturbed_loss"] for entry in training_logs(trainer)] for trainer in (actual, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_automatic_batch_size_regroups_slices(tmp_path):
    """A batch size that was lowered during training is cut into groups of sam_m like one that was requested."""

    class OutOfMemoryAboveTwo(SAMTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            if len(inputs["x"]) > 2:
                raise RuntimeError("CUDA out of memory.")
            return super().compute_loss(model, inputs, *args, **kwargs)

    model, expected = perceptron(), perceptron()
    run = RUN | {"sam_m": 4, "gradient_accumulation_steps": 2}
    trainer = trained(
        model,
        points(48),
        tmp_path,
        trainer_class=OutOfMemoryAboveTwo,
        per_device_train_batch_size=4,
        auto_find_batch_size=True,
        **run,
    )
    size = trainer.state.train_batch_size
    assert size == 2
    trained(expected, points(48), tmp_path, per_device_train_batch_size=size, **run)
    assert relative_difference(flat(model), flat(expected)) < 1e-12
