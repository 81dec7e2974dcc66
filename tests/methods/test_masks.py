"""Updates whose passes differ (masks, fractions, intervals): checkpointing, torch.compile, sparse gradients."""

from __future__ import annotations

import pytest
import torch
from tiny import Watch, bert, flat, perceptron, points, relative_difference, sentences, trained, trainer_of
from torch import nn
from torch._dynamo.utils import counters
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification


def images(size):
    generator = torch.Generator().manual_seed(1)
    return [{"pixel_values": torch.randn(1, 8, 8, generator=generator), "labels": i % 3} for i in range(size)]


def vit():
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(**size, image_size=8, patch_size=4, num_channels=1, num_labels=3))


def test_reentrant_checkpointing_that_is_not_in_the_arguments(tmp_path):
    """For images: transformers lets the embeddings of texts require a gradient, but not those of images."""
    weights = []
    for checkpointed in (False, True):
        model = vit()
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": True})
        trained(model, images(8), tmp_path, sam_rho=0.2, sam_target_modules=["layernorm_before"])
        weights.append(flat(model))
    assert relative_difference(*weights) < 1e-5


def test_looksam_at_radius_0_leaves_sparse_gradients_sparse(tmp_path):
    """An optimizer that works for plain training, such as SparseAdam, must still work."""
    model, sparse = bert(), []
    embedding = model.bert.embeddings.word_embeddings
    embedding.sparse, embedding.padding_idx = True, None

    def check(event, model):
        if event == "on_pre_optimizer_step":
            sparse.append(embedding.weight.grad.is_sparse)

    trained(model, sentences(16), tmp_path, callbacks=[Watch(check)], sam_method="looksam", sam_rho=0.0)
    assert sparse == [True] * 6


class Graphs(TrainerCallback):
    """Counts the graphs that were compiled by the end of each update."""

    def __init__(self):
        self.counts = []

    def on_step_end(self, args, state, control, **kwargs):
        self.counts.append(counters["stats"]["unique_graphs"])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


# Axes and their number of kinds of passes: gradients of all or some parameters or none, over all or some examples
AXES = {
    "mask": ({"sam_target_modules": "norm"}, 2),
    "mask, interval": ({"sam_target_modules": "norm", "sam_interval": 2}, 2),
    "fraction": ({"sam_ascent_fraction": 0.5}, 3),
    "looksam": ({"sam_method": "looksam", "sam_interval": 2}, 1),
    "msam": ({"sam_method": "msam", "optim_args": "momentum=0.9"}, 1),
}


@pytest.mark.parametrize("name", AXES)
def test_torch_compile_makes_one_graph_per_kind_of_pass(tmp_path, name):
    # Without it, BERT finds the problem type in its first pass, which would be another graph
    graphs, eager, compiled = Graphs(), *(bert(problem_type="single_label_classification") for _ in range(2))
    axis, kinds = AXES[name]
    run = {"sam_rho": 0.2, "max_steps": 4} | axis
    trained(eager, sentences(24), tmp_path, **run)
    backend = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    trained(compiled, sentences(24), tmp_path, callbacks=[graphs], **backend, **run)
    assert graphs.counts == [kinds] * 4
    assert relative_difference(flat(compiled), flat(eager)) < 1e-9


class Wrapped(nn.Module):
    """A model with a submodule whose name is the one that DDP gives to the model it wraps."""

    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        self.module = perceptron()

    def forward(self, x, labels=None):
        return self.module(x, labels)


def test_a_module_of_the_users_called_module_keeps_its_name(tmp_path):
    trainer = trainer_of(Wrapped(), points(8), tmp_path, sam_target_modules=r"module\.first", max_steps=1)
    trainer.train()
    covered = {name for name, p in trainer.model.named_parameters() if trainer._sam_runner.structure.covers(p)}
    assert covered == {"module.first.weight", "module.first.bias"}
