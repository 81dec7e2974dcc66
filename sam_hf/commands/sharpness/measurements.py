"""The measurements of one model, as the numbers of `sharpness.json`."""

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

# Saves the results. It is called after every measurement, so that a run that is stopped keeps them
Save = Callable[[], None]


def measure_hessian(oracle: LossOracle, options: Measurements, model: dict[str, Any], save: Save) -> None:
    """Measure eigenvalues, trace and spectral density, and put them into `model["hessian"]`."""
    count = min(options.top, oracle.dimension)
    eigenvalues = hessian_eigenvalues(
        oracle,
        count,
        max_vectors=options.max_vectors,
        tolerance=options.tolerance,
        max_products=max(options.max_products, count),
    )
    product, attention = oracle.product
    hessian: dict[str, Any] = {
        "product": product,
        **({"attention": attention} if attention else {}),
        "eigenvalues": eigenvalues.values.tolist(),
        "residuals": eigenvalues.residuals.tolist(),
        "converged": eigenvalues.converged,
        "products": eigenvalues.products,
    }
    model["hessian"] = hessian
    if count >= 5 and float(eigenvalues.values[4]) > 0:
        hessian["lambda_ratio"] = eigenvalues.ratio()
    save()
    if options.trace_probes:
        sketch = min(options.trace_sketch, options.max_vectors or options.trace_sketch)
        trace = hessian_trace(oracle, sketch=sketch, probes=options.trace_probes)
        hessian |= {"trace": trace.value, "trace_error": trace.standard_error}
        save()
    if options.density_probes:
        bound: dict[str, Any] = {} if options.max_vectors is None else {"max_vectors": options.max_vectors}
        density = hessian_spectral_density(oracle, probes=options.density_probes, steps=options.density_steps, **bound)
        grid = density.grid()
        nodes = density.nodes[density.weights > 0]
        sigma = 0.01 * float(nodes.max() - nodes.min()) or 0.01
        hessian["density"] = {
            "eigenvalues": grid.tolist(),
            "density": density.density(grid, sigma).tolist(),
            "sigma": sigma,
        }
        save()


def measure_neighborhood(
    oracle: LossOracle, options: Measurements, parameters: int, model: dict[str, Any], save: Save
) -> None:
    """
    Measure m-sharpness for every m and p, adaptive sharpness and random directions, and put them into
    `model["neighborhood"]`.

    Args:
        oracle ([`LossOracle`]): over examples in random order, which are divided into groups.
        parameters (`int`): number of parameters of the first model, which sets both models' radius in the inf-norm.
    """
    root = parameters**0.5
    radii = {2.0: options.rho, float("inf"): options.rho / root if options.rho_inf is None else options.rho_inf}
    adaptive_radii = {2.0: options.adaptive_rho, float("inf"): options.adaptive_rho / root}
    part: dict[str, Any] = {"rho": options.rho, "m_sharpness": [], "adaptive": [], "random": []}
    model["neighborhood"] = part
    for p, rho in radii.items():
        for m in options.m:
            part["m_sharpness"].append({"m": m, **_row(p, m_sharpness(oracle, rho, m=m, p=p))})
            save()
    for p, rho in adaptive_radii.items():
        m = min(options.m, key=lambda given: abs(given - 32))
        part["adaptive"].append({"m": m, **_row(p, adaptive_sharpness(oracle, rho, m=m, p=p))})
        save()
    for p, rho in radii.items():
        sharpness = random_direction_sharpness(oracle, rho, directions=options.directions, p=p)
        part["random"].append(_row(p, sharpness))
        save()


def measure_landscape(oracle: LossOracle, options: Measurements, model: dict[str, Any], save: Save) -> None:
    """
    Measure the loss along a line and over a plane, and put it into `model["landscape"]`. The random numbers behind the
    directions depend only on the seed and the parameters' names, so models of one architecture share them.
    """
    directions = filter_normalized(oracle, random_directions(oracle, 2 if options.surface_points else 1))
    far = options.landscape_radius
    x = torch.linspace(-far, far, options.line_points, dtype=torch.float64)
    part: dict[str, Any] = {"line": {"x": x.tolist(), "loss": loss_slice(oracle, directions[0], x).tolist()}}
    model["landscape"] = part
    save()
    if options.surface_points:
        x = torch.linspace(-far, far, options.surface_points, dtype=torch.float64)
        losses = loss_surface(oracle, directions, x, x)
        part["surface"] = {"x": x.tolist(), "y": x.tolist(), "loss": losses.tolist()}
        save()


def products_besides_eigenvalues(options: Measurements) -> int:
    """Return how many Hessian-vector products the trace and the spectral density need."""
    trace = 2 * options.trace_sketch + options.trace_probes if options.trace_probes else 0
    return trace + options.density_probes * options.density_steps


def _row(p: float, sharpness: Any) -> dict[str, Any]:
    return {
        "p": "inf" if p == float("inf") else 2,
        "rho": sharpness.rho,
        "mean": sharpness.mean,
        "max": sharpness.worst,
        "error": sharpness.standard_error,
    }
