"""Models whose attention has no second derivative. The replacement is exact or logged, and removed afterwards."""

from __future__ import annotations

import pytest
import torch
from exact import batches_of, exact_hessian, oracle_of, whole_matrix
from tiny import bert, perceptron, points, sentences
from torch import nn
from transformers.utils import logging

from sam_hf.sharpness import LossOracle
from sam_hf.sharpness import attention as attention_module


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(attention_module.logger, "warning", lines.append)
    return lines


def random_vector(oracle):
    return torch.randn(oracle.dimension, dtype=oracle.dtype, generator=torch.Generator().manual_seed(0))


def test_sdpa_becomes_eager_and_is_put_back(warnings):
    data, model = sentences(5), bert(attn_implementation="sdpa")
    # With padding, since the two implementations take their masks in different forms
    data[0]["attention_mask"] = torch.tensor([1, 1, 1, 0, 0, 0])
    oracle = oracle_of(model, data, 2)
    during = []
    model.classifier.register_forward_hook(lambda *_: during.append(model.config._attn_implementation))
    product = oracle.hvp(random_vector(oracle))
    assert during[0] == "sdpa" and set(during[1:]) == {"eager"}
    assert model.config._attn_implementation == "sdpa"
    exact = exact_hessian(bert(attn_implementation="eager"), data)
    torch.testing.assert_close(product, exact @ random_vector(oracle), rtol=1e-8, atol=1e-10)
    assert (
        len(warnings) == 1 and "the eager attention implementation" in warnings[0] and "not implemented" in warnings[0]
    )
    oracle.hvp(random_vector(oracle))
    assert len(warnings) == 1  # logged only once
    during.clear()
    oracle.gradient()
    assert set(during) == {"sdpa"}  # it has first derivatives


def test_eager_is_left_as_it_is(warnings):
    oracle = oracle_of(bert(attn_implementation="eager"), sentences(4))
    oracle.hvp(random_vector(oracle))
    assert not warnings


class SelfAttention(nn.Module):
    """Attention that calls torch's fused kernel directly, as timm's models do."""

    def forward(self, x):
        heads = x.view(1, 1, len(x), 6)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads).view(len(x), 6)


class Unfused(nn.Module):
    def forward(self, x):
        return torch.softmax(x @ x.T / 6**0.5, -1) @ x


def test_a_model_that_calls_torchs_kernel_itself(warnings):
    oracle = oracle_of(perceptron(SelfAttention), points(8), size=8)
    matrix = whole_matrix(oracle)
    torch.testing.assert_close(matrix, exact_hessian(perceptron(Unfused), points(8)), rtol=1e-8, atol=1e-12)
    assert len(warnings) == 1 and "unfused" in warnings[0]


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


def test_finite_differences_where_nothing_else_is_left(warnings):
    oracle = oracle_of(perceptron(lambda: Applied(Once)))
    exact = exact_hessian(perceptron(nn.Tanh), points(10))
    torch.testing.assert_close(whole_matrix(oracle), exact, rtol=0, atol=1e-8)
    assert len(warnings) == 1 and "finite differences" in warnings[0] and "autograd.Function" in warnings[0]
    with pytest.raises(RuntimeError, match=r'cannot be differentiated twice .* Use product="finite_difference"'):
        whole_matrix(oracle_of(perceptron(lambda: Applied(Once)), product="double_backward"))


class Silent(torch.autograd.Function):
    """A function whose gradient is right but has no gradient itself, as with kernels."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.detach()


class IntoBuffer(Silent):
    """A function whose backward cannot be recorded: TRL's chunked loss writes into a buffer there."""

    @staticmethod
    def backward(ctx, gradient):
        return torch.mul(gradient, 1, out=torch.empty_like(gradient))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


def test_a_backward_that_cannot_be_recorded(warnings):
    v = random_vector(oracle_of(perceptron()))
    product = oracle_of(perceptron(lambda: Applied(IntoBuffer))).hvp(v)
    torch.testing.assert_close(product, exact_hessian(perceptron(), points(10)) @ v, rtol=1e-6, atol=1e-8)
    assert len(warnings) == 1 and "finite differences" in warnings[0] and "automatic differentiation" in warnings[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_that_drop_out_of_the_second_derivative_are_found_out(warnings, dtype):
    data = points(10, dtype)
    oracle = oracle_of(perceptron(lambda: Applied(Silent)).to(dtype), data)
    exact = exact_hessian(perceptron().to(dtype), data)
    v = random_vector(oracle)
    tolerance = 1e-2 if dtype == torch.float32 else 1e-6
    assert float((oracle.hvp(v) - exact @ v).norm() / (exact @ v).norm()) < tolerance
    assert len(warnings) == 1 and "finite differences" in warnings[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_that_do_not_are_differentiated_twice(warnings, dtype):
    data = points(10, dtype)
    oracle = oracle_of(perceptron(lambda: Applied(Twice)).to(dtype), data)
    exact = exact_hessian(perceptron(nn.Tanh).to(dtype), data)
    torch.testing.assert_close(whole_matrix(oracle), exact, rtol=1e-5, atol=1e-7)
    assert not warnings


def test_kernels_of_third_parties_are_not_tried(warnings):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def silent(module, query, key, value, *args, **kwargs):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            output, weights = sdpa_attention_forward(module, query, key, value, *args, **kwargs)
        return Silent.apply(output), weights

    AttentionInterface.register("silent", silent)
    model = bert()
    model.set_attn_implementation("silent")
    oracle = oracle_of(model, sentences(4))
    exact = exact_hessian(bert(attn_implementation="eager"), sentences(4))
    torch.testing.assert_close(oracle.hvp(random_vector(oracle)), exact @ random_vector(oracle), rtol=1e-8, atol=1e-9)
    assert model.config._attn_implementation == "silent"
    assert len(warnings) == 1 and "eager" in warnings[0]


def test_errors_of_the_model_are_not_taken_for_missing_derivatives(warnings):
    with pytest.raises(RuntimeError, match="shapes"):
        whole_matrix(oracle_of(perceptron(lambda: nn.Linear(7, 6)).double()))
    assert not warnings


def test_parts_with_attention_of_their_own():
    """In a model of models, each part has its own attention again afterwards."""
    from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = BertConfig(vocab_size=24, **small)
    decoder = BertConfig(vocab_size=24, is_decoder=True, add_cross_attention=True, **small)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    torch.manual_seed(0)
    model = EncoderDecoderModel(config).double()
    model.set_attn_implementation({"": "sdpa", "encoder": "sdpa", "decoder": "eager"})
    before = attention_module.attention_of(model.config)
    ids = torch.randint(2, 24, (2, 5))
    oracle = LossOracle(model, [{"input_ids": ids, "labels": ids}], disable_tqdm=True)
    v = random_vector(oracle)
    product = oracle.hvp(v)
    assert attention_module.attention_of(model.config) == before
    assert before["encoder"][""] == "sdpa" and before["decoder"][""] == "eager"
    differences = LossOracle(model, [{"input_ids": ids, "labels": ids}], product="finite_difference").hvp(v)
    torch.testing.assert_close(product, differences, rtol=0, atol=1e-7 * float(product.norm()))


def test_progress_bars(capsys):
    from sam_hf.sharpness import hessian_eigenvalues

    batches = batches_of(points(8), 4)
    hessian_eigenvalues(LossOracle(perceptron(), batches), 2, max_vectors=8)
    shown = capsys.readouterr().err
    assert "Lanczos (8 vectors, 0.0 MiB)" in shown and "/200" in shown
    hessian_eigenvalues(LossOracle(perceptron(), batches, disable_tqdm=True), 2)
    logging.disable_progress_bar()
    try:
        hessian_eigenvalues(LossOracle(perceptron(), batches), 2)
    finally:
        logging.enable_progress_bar()
    assert "Lanczos" not in capsys.readouterr().err
