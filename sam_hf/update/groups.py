"""Which examples share a perturbation, and which of them its ascent gradient is computed on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .random_state import RandomState
from .slices import first_dimension, slice_examples


@dataclass
class Piece:
    """
    What a group is made of: a micro-batch, or a slice of its examples.

    Attributes:
        inputs: all of its examples; the descent pass is over them.
        micro_batch: what it is a slice of; `inputs` itself if it is all of it.
        ascent_inputs: the examples that the ascent gradient is computed on: `inputs` itself, a slice of them, or
            `None` for none.
        ends_ascent: the last piece at w with an ascent pass before ε is made.
        ends_group: the last piece before ε is made.
        ends_window: the last piece of the window, whose descent pass reduces gradients over processes.
        random: the generators as the ascent pass over this piece found them.
    """

    inputs: dict[str, Any]
    micro_batch: dict[str, Any]
    ascent_inputs: dict[str, Any] | None
    ends_ascent: bool = False
    ends_group: bool = False
    ends_window: bool = False
    random: RandomState | None = None

    @property
    def ascends_whole(self) -> bool:
        """The ascent gradient is computed on all of its examples."""
        return self.ascent_inputs is self.inputs

    def replay_random(self) -> None:
        if self.random is not None:
            self.random.restore()


@dataclass
class GroupSize:
    """m as Trainer's batches see it: micro-batches a group, or examples a group where a group is part of one."""

    micro_batches: int | None = None
    examples: int | None = None

    @classmethod
    def of(cls, m: int | None, micro_batch: int, data_parallel: int = 1) -> GroupSize:
        """
        Args:
            m (`int`, *optional*): examples a device that share a perturbation; `None`: the whole window.
            micro_batch (`int`): examples a device of one micro-batch.
            data_parallel (`int`, *optional*, defaults to `1`): devices of `nn.DataParallel`; they share their weights,
                so they share ε too.
        """
        if m is None:
            return cls()
        if m >= micro_batch:
            return cls(micro_batches=m // micro_batch)
        return cls(examples=m * data_parallel)


class WindowGroups:
    """
    A window cut into groups, and these into pieces.

    Args:
        batches (`Sequence`): the window's micro-batches.
        grouping ([`GroupSize`]): what shares one perturbation.
        fraction (`float`): share f of a group's examples with an ascent pass: the first ⌈f·n⌉ of all n.

    Attributes:
        coming: pieces of the present group that are whole micro-batches still to come.
    """

    def __init__(self, batches: Sequence[dict[str, Any]], grouping: GroupSize, fraction: float):
        self.size = len(batches)
        self.fraction = fraction
        self.coming: list[Piece] = []
        self._grouping = grouping
        # Without a fraction nothing has to be known of the batches to come
        self._batches = list(batches) if fraction < 1 else []
        self._position = 0

    @property
    def is_complete(self) -> bool:
        return self._position >= self.size

    @property
    def slices_batches(self) -> bool:
        """Some passes are over a part of a micro-batch."""
        return self._grouping.examples is not None or self.fraction < 1

    def pieces(self, batch: dict[str, Any]) -> list[Piece]:
        """The pieces of the next micro-batch, which is this one."""
        self._position += 1
        size = self._grouping.examples
        if size is not None and (total := first_dimension(batch)) > size:
            parts = [slice_examples(batch, start, min(start + size, total)) for start in range(0, total, size)]
            pieces = [Piece(part, batch, part, ends_group=True) for part in parts]
            pieces[-1].ends_window = self.is_complete
            for piece in pieces:
                self._choose_ascent([piece])
        else:
            if not self.coming:
                self._begin_group(batch)
            pieces = [_of(batch, self.coming.pop(0))]
        if self.is_complete:
            self._batches.clear()
        return pieces

    def _begin_group(self, batch: dict[str, Any]) -> None:
        first = self._position - 1
        length = 1 if self._grouping.examples is not None else self._grouping.micro_batches or self.size
        last = min(first - first % length + length, self.size) - 1
        self.coming = [Piece(b, b, b) for b in (self._batches[first : last + 1] if self._batches else [batch])]
        for place, piece in enumerate(self.coming, first):
            piece.ends_group, piece.ends_window = place == last, place == self.size - 1
        self._choose_ascent(self.coming)

    def _choose_ascent(self, group: Sequence[Piece]) -> None:
        if self.fraction == 1:
            for piece in group:
                piece.ends_ascent = piece.ends_group
            return
        sizes = [first_dimension(piece.inputs) for piece in group]
        # Rounded first: 0.3 times 10 is above 3 in floating point
        left = math.ceil(round(self.fraction * sum(sizes), 9))
        for piece, size in zip(group, sizes, strict=True):
            if left < size:
                piece.ascent_inputs = slice_examples(piece.inputs, 0, left) if left > 0 else None
            piece.ends_ascent = 0 < left <= size
            left -= size


def _of(batch: dict[str, Any], planned: Piece) -> Piece:
    """The piece as planned, of the batch as a `training_step` above has handed it on."""
    if planned.ascends_whole:
        planned.ascent_inputs = batch
    elif planned.ascent_inputs is not None and planned.inputs is not batch:
        planned.ascent_inputs = slice_examples(batch, 0, first_dimension(planned.ascent_inputs))
    planned.inputs = planned.micro_batch = batch
    return planned
