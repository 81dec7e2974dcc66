"""Measures the sharpness of a tiny model on each of two ranks, and saves the results of each rank."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import leave
from tiny import bert, perceptron, points, sentences, trainer_of
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Trainer

from sam_hf.sharpness import (
    LossOracle,
    filter_normalized,
    hessian_eigenvalues,
    hessian_spectral_density,
    hessian_trace,
    loss_surface,
    m_sharpness,
    random_direction_sharpness,
    random_directions,
)


def measured(oracle: LossOracle) -> dict[str, torch.Tensor]:
    directions = filter_normalized(oracle, random_directions(oracle))
    rises = m_sharpness(oracle, 0.3, m=1)
    return {
        "loss": torch.tensor(oracle.loss(), dtype=torch.float64),
        "gradient": oracle.gradient(),
        "product": oracle.hvp(torch.ones(oracle.dimension, dtype=torch.float64)),
        "eigenvalues": hessian_eigenvalues(oracle, 3).values,
        "trace": hessian_trace(oracle, sketch=2, probes=3).samples,
        "density": hessian_spectral_density(oracle, probes=2, steps=5).nodes,
        "m-sharpness": rises.values.sort().values,
        "random directions": random_direction_sharpness(oracle, 0.3, directions=3).values,
        "surface": loss_surface(oracle, directions, [0.0, 0.5], [0.2]),
    }


def uneven(rank: int | None) -> LossOracle:
    """Return an oracle over 5 examples on rank 0, 2 on rank 1, and all 7 without a rank."""
    data = points(7)
    part = data if rank is None else data[:5] if rank == 0 else data[5:]
    return LossOracle(perceptron(), DataLoader(part, batch_size=2), disable_tqdm=True)


def drawn() -> LossOracle:
    """Return an oracle over 9 of 20 examples, which it distributes itself: each process has a loader of all."""
    return LossOracle(perceptron(), DataLoader(points(20), batch_size=2), max_examples=9, disable_tqdm=True)


def single() -> LossOracle:
    """Return an oracle over one example, so that rank 1 has none."""
    return LossOracle(perceptron(), DataLoader(points(20), batch_size=2), max_examples=1, disable_tqdm=True)


def attention() -> LossOracle:
    return LossOracle(bert(attn_implementation="sdpa"), DataLoader(sentences(8)), max_examples=1, disable_tqdm=True)


def trainer(folder: Path) -> LossOracle:
    """Return an oracle from a trainer with 7 examples, of which accelerate would repeat one."""
    made = trainer_of(perceptron(), points(7), folder, trainer_class=Trainer, per_device_eval_batch_size=2)
    return LossOracle.from_trainer(made)


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    cases = {"uneven": uneven(rank), "drawn": drawn(), "single": single(), "trainer": trainer(out)}
    results = {name: measured(oracle) for name, oracle in cases.items()}
    results["attention"] = {"product": attention().hvp(torch.ones(attention().dimension, dtype=torch.float64))}
    # The model is wrapped, as it is during a distributed run
    oracle = cases["uneven"]
    wrapped = LossOracle(DistributedDataParallel(perceptron()), oracle.batches, disable_tqdm=True)
    results["wrapped"] = measured(wrapped)
    torch.save(results, out / f"{rank}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
