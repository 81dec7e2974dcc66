"""What `sam-hf sharpness` measures of one model, as the numbers of `sharpness.json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ...sharpness import (
    LossOracle,
    adaptive_sharpness,
    filter_normalized,
    hessian_eigenvalues,
    hessian_spectral_density,
    hessian_trace,
    loss_slice,
    loss_surface,
    m_sharpness,
    random_direction_sharpness,
    random_directions,
)

if TYPE_CHECKING:
    from .options import Measurements

# Saves what is there; called after every measurement, so that a run that is stopped keeps them
Save = Callable[[], None]


def measure_hessian(oracle: LossOracle, wanted: Measurements, into: dict[str, Any], save: Save) -> None:
    """Eigenvalues, trace and density, into `into["hessian"]`."""
    count = min(wanted.top, oracle.dimension)
    found = hessian_eigenvalues(
        oracle,
        count,
        max_vectors=wanted.max_vectors,
        tolerance=wanted.tolerance,
        max_products=max(wanted.max_products, count),
    )
    product, attention = oracle.product
    hessian: dict[str, Any] = {
        "product": product,
        **({"attention": attention} if attention else {}),
        "eigenvalues": found.values.tolist(),
        "residuals": found.residuals.tolist(),
        "converged": found.converged,
        "products": found.products,
    }
    into["hessian"] = hessian
    if count >= 5 and float(found.values[4]) > 0:
        hessian["lambda_ratio"] = found.ratio()
    save()
    if wanted.trace_probes:
        sketch = wanted.trace_sketch if wanted.max_vectors is None else min(wanted.trace_sketch, wanted.max_vectors)
        trace = hessian_trace(oracle, sketch=sketch, probes=wanted.trace_probes)
        hessian |= {"trace": trace.value, "trace_error": trace.standard_error}
        save()
    if wanted.density_probes:
        bound: dict[str, Any] = {} if wanted.max_vectors is None else {"max_vectors": wanted.max_vectors}
        density = hessian_spectral_density(oracle, probes=wanted.density_probes, steps=wanted.density_steps, **bound)
        grid = density.grid()
        seen = density.nodes[density.weights > 0]
        sigma = 0.01 * float(seen.max() - seen.min()) or 0.01
        hessian["density"] = {
            "eigenvalues": grid.tolist(),
            "density": density.density(grid, sigma).tolist(),
            "sigma": sigma,
        }
        save()


def measure_neighborhood(
    oracle: LossOracle, wanted: Measurements, parameters: int, into: dict[str, Any], save: Save
) -> None:
    """
    m-sharpness for every m and p, adaptive sharpness and random directions, into `into["neighborhood"]`.

    Args:
        oracle ([`LossOracle`]): over examples in random order, of which the groups are made.
        parameters (`int`): P of the first model, for the radius of both in the inf-norm.
    """
    root = parameters**0.5
    radii = {2.0: wanted.rho, float("inf"): wanted.rho / root if wanted.rho_inf is None else wanted.rho_inf}
    adaptive_radii = {2.0: wanted.adaptive_rho, float("inf"): wanted.adaptive_rho / root}
    part: dict[str, Any] = {"rho": wanted.rho, "m_sharpness": [], "adaptive": [], "random": []}
    into["neighborhood"] = part
    for p, rho in radii.items():
        for m in wanted.m:
            part["m_sharpness"].append({"m": m, **_row(p, m_sharpness(oracle, rho, m=m, p=p))})
            save()
    for p, rho in adaptive_radii.items():
        m = min(wanted.m, key=lambda given: abs(given - 32))
        part["adaptive"].append({"m": m, **_row(p, adaptive_sharpness(oracle, rho, m=m, p=p))})
        save()
    for p, rho in radii.items():
        found = random_direction_sharpness(oracle, rho, directions=wanted.directions, p=p)
        part["random"].append(_row(p, found))
        save()


def measure_landscape(oracle: LossOracle, wanted: Measurements, into: dict[str, Any], save: Save) -> None:
    """
    The loss along a line and over a plane, into `into["landscape"]`. The random numbers behind the directions hang on
    the seed and the parameters' names alone: models of one architecture share them.
    """
    directions = filter_normalized(oracle, random_directions(oracle, 2 if wanted.surface_points else 1))
    far = wanted.landscape_radius
    x = torch.linspace(-far, far, wanted.line_points, dtype=torch.float64)
    part: dict[str, Any] = {"line": {"x": x.tolist(), "loss": loss_slice(oracle, directions[0], x).tolist()}}
    into["landscape"] = part
    save()
    if wanted.surface_points:
        x = torch.linspace(-far, far, wanted.surface_points, dtype=torch.float64)
        losses = loss_surface(oracle, directions, x, x)
        part["surface"] = {"x": x.tolist(), "y": x.tolist(), "loss": losses.tolist()}
        save()


def products_of(wanted: Measurements) -> int:
    """Hessian-vector products beside those of the eigenvalues."""
    trace = 2 * wanted.trace_sketch + wanted.trace_probes if wanted.trace_probes else 0
    return trace + wanted.density_probes * wanted.density_steps


def _row(p: float, found: Any) -> dict[str, Any]:
    return {
        "p": "inf" if p == float("inf") else 2,
        "rho": found.rho,
        "mean": found.mean,
        "max": found.worst,
        "error": found.standard_error,
    }
