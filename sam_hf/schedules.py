"""ρ(t): the radius of each update. 0 where an update is to be plain, which is how timing is expressed too."""

from __future__ import annotations

from .training_args import SAMArguments, method_class


def radius_at(args: SAMArguments, update: int, total: int) -> float:
    """
    ρ of one update.

    Args:
        args (`SAMArguments`): the arguments of the run.
        update (`int`): updates done so far, from 0.
        total (`int`): updates of the whole run.

    Returns:
        `float`: the radius; `0.0` for an update that takes one plain pass.
    """
    if args.sam_method == "none":
        return 0.0
    return method_class(args).default_rho if args.sam_rho is None else args.sam_rho
