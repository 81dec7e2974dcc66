"""Sharpness of a model's loss on a dataset: the Hessian's largest eigenvalues, and m-sharpness."""

from __future__ import annotations

import datasets
import evaluate
import torch
import transformers

import sam_hf.sharpness

_CITATION = """\
@inproceedings{foret2021sharpness,
  title = {Sharpness-Aware Minimization for Efficiently Improving Generalization},
  author = {Pierre Foret and Ariel Kleiner and Hossein Mobahi and Behnam Neyshabur},
  booktitle = {International Conference on Learning Representations},
  year = {2021},
  url = {https://arxiv.org/abs/2010.01412}
}
"""

_INPUTS = """
Args of `compute`, all by name:
    model: an `nn.Module` in float32 or float64. It is measured in evaluation mode and left as it was.
    data: a dataset with a length, of examples with labels. Or
    dataloader: any iterable of batches.
    batch_size: examples a batch of `data`. Default: 8.
    collator: makes a batch of examples of `data`. Default: `transformers.default_data_collator`.
    loss: `loss(model, batch)`, a mean over the batch's examples. Default: the loss that the model returns.
    rho: radius of m-sharpness. Default: 0.05.
    m: examples that share a perturbation. Default: the batches as they are.
    p: order of its norm, 2 or infinity. Default: 2.
    max_examples: measure on this many examples, drawn under `seed`. Default: all.
    k: how many eigenvalues. Default: 5.
    tolerance: of their residuals, as a share of each. Default: 1e-2; the error is of the order of its square.
    max_products: Hessian-vector products at most. Default: 200.
    seed: default 0.

Returns a dict:
    lambda_max: the largest eigenvalue of the Hessian of the loss, in loss per squared unit of weight.
    eigenvalues, residuals: the k largest, and how far each may be off.
    lambda_ratio: the first over the fifth, where k >= 5.
    converged: whether all residuals are within the tolerance.
    m_sharpness, m_sharpness_max: the rise of the loss at the worst point of the ball, to first order; the mean over
        groups of m examples, and the largest.
    m_sharpness_error: standard error of the mean; infinite with a single group.
    loss: the mean loss.
"""


class Sharpness(evaluate.Measurement):
    """See `inputs_description`. With several processes, each has the answer over all of their examples."""

    def _info(self):
        return evaluate.MeasurementInfo(
            module_type="measurement",
            description=__doc__,
            citation=_CITATION,
            inputs_description=_INPUTS,
            # None is kept in evaluate's table: a model and tensors go straight to the computation
            features=datasets.Features({}),
            reference_urls=["https://arxiv.org/abs/2010.01412"],
        )

    def compute(self, *, model, data=None, dataloader=None, **options):
        """As `inputs_description` says. Overridden as a whole: evaluate's own first writes the inputs to a table."""
        return self._compute(model, data, dataloader, **options)

    def _compute(
        self,
        model,
        data=None,
        dataloader=None,
        *,
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
        if (data is None) == (dataloader is None):
            given = "both" if data is not None else "neither"
            raise ValueError(f"Give data (a dataset of examples) or dataloader (batches), one of them: {given} given.")
        if dataloader is None:
            collator = collator or transformers.default_data_collator
            dataloader = torch.utils.data.DataLoader(data, batch_size=batch_size, collate_fn=collator)
        oracle = sam_hf.sharpness.LossOracle(model, dataloader, loss=loss, max_examples=max_examples, seed=seed)
        found = sam_hf.sharpness.hessian_eigenvalues(oracle, k, tolerance=tolerance, max_products=max_products)
        rise = sam_hf.sharpness.m_sharpness(oracle, rho, m=m, p=p)
        result = {
            "lambda_max": float(found.values[0]),
            "eigenvalues": found.values.tolist(),
            "residuals": found.residuals.tolist(),
            "converged": found.converged,
            "m_sharpness": rise.mean,
            "m_sharpness_max": rise.worst,
            "m_sharpness_error": rise.standard_error,
            "loss": oracle.loss(),
        }
        if k >= 5:
            result["lambda_ratio"] = found.ratio()
        return result
