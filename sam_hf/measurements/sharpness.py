"""Sharpness of a model's loss on a dataset: the largest eigenvalues of the Hessian, and m-sharpness."""

import datasets
import evaluate
import torch
import transformers

import sam_hf.sharpness
from sam_hf.methods import METHODS

_INPUTS = """
Args of `compute`, all passed by name:
    model: an `nn.Module` in float32 or float64. It is measured in evaluation mode and not changed.
    data: a dataset with a length, whose examples have labels. Give either this or
    dataloader: any iterable of batches.
    batch_size: examples of `data` per batch. Default: 8.
    collator: makes a batch from examples of `data`. Default: `transformers.default_data_collator`.
    loss: `loss(model, batch)`, a mean over the batch's examples. Default: the loss that the model returns.
    rho: radius of m-sharpness. Default: 0.05.
    m: number of examples that share a perturbation. Default: each batch shares one.
    p: order of the perturbation's norm, 2 or infinity. Default: 2.
    max_examples: measure on this many examples, drawn with `seed`. Default: all.
    k: number of eigenvalues. Default: 5.
    tolerance: largest allowed residual, as a share of its eigenvalue. Default: 1e-2; the error of an eigenvalue is of
        the order of the square of this share.
    max_products: largest number of Hessian-vector products. Default: 200.
    seed: default 0.

Returns a dict:
    lambda_max: the largest eigenvalue of the Hessian of the loss, in loss per squared unit of weight.
    eigenvalues, residuals: the k largest eigenvalues, and how far each may be from the true one.
    lambda_ratio: the first eigenvalue divided by the fifth, if k >= 5.
    converged: whether all residuals are within the tolerance.
    m_sharpness, m_sharpness_max: the rise of the loss at the worst point of the ball, to first order: the mean over
        groups of m examples, and the largest.
    m_sharpness_error: standard error of the mean; infinite with a single group.
    loss: the mean loss.
"""


class Sharpness(evaluate.Measurement):
    """See `inputs_description`. With several processes, each returns the result over the examples of all of them."""

    def _info(self):
        return evaluate.MeasurementInfo(
            description=__doc__,
            citation=METHODS["sam"].citation,
            inputs_description=_INPUTS,
            # Empty, because evaluate's table stores nothing: the model and tensors go straight to the computation
            features=datasets.Features({}),
            reference_urls=[METHODS["sam"].paper],
        )

    def compute(
        self,
        *,
        model,
        data=None,
        dataloader=None,
        batch_size=8,
        collator=None,
        loss=None,
        rho=0.05,
        m=None,
        p=2.0,
        max_examples=None,
        k=5,
        tolerance=1e-2,
        max_products=200,
        seed=0,
    ):
        """See `inputs_description`. This replaces the `compute` of evaluate, which writes all inputs to a table."""
        if (data is None) == (dataloader is None):
            given = "both" if data is not None else "neither"
            raise ValueError(f"Give either data (a dataset of examples) or dataloader (batches): {given} was given.")
        if dataloader is None:
            collator = collator or transformers.default_data_collator
            dataloader = torch.utils.data.DataLoader(data, batch_size=batch_size, collate_fn=collator)
        oracle = sam_hf.sharpness.LossOracle(model, dataloader, loss=loss, max_examples=max_examples, seed=seed)
        largest = sam_hf.sharpness.hessian_eigenvalues(oracle, k, tolerance=tolerance, max_products=max_products)
        rise = sam_hf.sharpness.m_sharpness(oracle, rho, m=m, p=p)
        return {
            "lambda_max": float(largest.values[0]),
            "eigenvalues": largest.values.tolist(),
            "residuals": largest.residuals.tolist(),
            **({"lambda_ratio": largest.ratio()} if k >= 5 else {}),
            "converged": largest.converged,
            "m_sharpness": rise.mean,
            "m_sharpness_max": rise.worst,
            "m_sharpness_error": rise.standard_error,
            "loss": oracle.loss(),
        }
