"""How a window is cut: which examples share a perturbation, which get an ascent pass, and slices of micro-batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .random_state import RandomState

_CANNOT = "sam_ascent_fraction and sam_m cannot cut this batch into examples"
_INSTEAD = "Leave sam_ascent_fraction out, and give a sam_m that is a multiple of per_device_train_batch_size."


@dataclass
class Piece:
    """
    A part of a group: a micro-batch, or a slice of its examples.

    Attributes:
        inputs: all examples of the piece. The descent pass covers them.
        micro_batch: the micro-batch that the piece belongs to; `inputs` itself for a whole micro-batch.
        ascent_inputs: the examples that the ascent pass covers: `inputs` itself, a slice of them, or `None` for none.
        ends_ascent: this is the last piece with an ascent pass before epsilon is computed.
        ends_group: this is the last piece of its group.
        ends_window: this is the last piece of the window. Its descent pass reduces gradients over processes.
        random: the random state at the start of the piece's ascent pass.
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
        """The ascent pass covers all examples of the piece."""
        return self.ascent_inputs is self.inputs

    def replay_random(self) -> None:
        """Go back to the random state of the ascent pass, if it was saved."""
        if self.random is not None:
            self.random.restore()


@dataclass
class GroupSize:
    """
    The size of a group, in the unit that fits Trainer's batches. Without either number, the whole window is one group.

    Attributes:
        micro_batches: whole micro-batches per group.
        examples: examples per group, where a group is part of a micro-batch.
    """

    micro_batches: int | None = None
    examples: int | None = None

    @classmethod
    def of(cls, m: int | None, micro_batch: int, data_parallel: int = 1) -> GroupSize:
        """
        Convert the argument m of m-sharpness.

        Args:
            m (`int`, *optional*): examples per device that share a perturbation; `None`: the whole window.
            micro_batch (`int`): examples per device in one micro-batch.
            data_parallel (`int`, *optional*, defaults to `1`): devices of `nn.DataParallel`. They share their weights,
                so they also share epsilon.
        """
        if m is None:
            return cls()
        if m >= micro_batch:
            return cls(micro_batches=m // micro_batch)
        return cls(examples=m * data_parallel)


class WindowGroups:
    """
    Cuts a window into groups, and the groups into pieces.

    Args:
        batches (`Sequence`): the micro-batches of the window.
        size ([`GroupSize`]): how many examples share one perturbation.
        fraction (`float`): share f of a group's examples with an ascent pass: the first ⌈f·n⌉ of all n.

    Attributes:
        coming: the pieces of the present group that have not arrived yet. All of them are whole micro-batches.
    """

    def __init__(self, batches: Sequence[dict[str, Any]], size: GroupSize, fraction: float):
        self.fraction = fraction
        self.coming: list[Piece] = []
        self._size = size
        self._length = len(batches)
        # Only a fraction needs to look at batches before they arrive
        self._batches = list(batches) if fraction < 1 else []
        self._position = 0

    @property
    def slices_batches(self) -> bool:
        """Some passes cover only a part of a micro-batch."""
        return self._size.examples is not None or self.fraction < 1

    def pieces(self, batch: dict[str, Any]) -> list[Piece]:
        """Return the pieces of the next micro-batch, which is `batch`."""
        first, self._position = self._position, self._position + 1
        size = self._size.examples
        if size is not None and first_dimension(batch) > size:
            pieces = [Piece(part, batch, part, ends_group=True) for part in self.parts(batch)]
            pieces[-1].ends_window = self._position == self._length
            for piece in pieces:
                self._choose_ascent([piece])
        else:
            if not self.coming:
                self._begin_group(batch, first)
            pieces = [_with_batch(self.coming.pop(0), batch)]
        if self._position >= self._length:
            self._batches.clear()
        return pieces

    def parts(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Return slices that together are `batch`: those of `size`, or two halves if it is not cut into these."""
        total = first_dimension(batch)
        size = self._size.examples
        if size is None or total <= size:
            size = (total + 1) // 2
        return [slice_examples(batch, start, min(start + size, total)) for start in range(0, total, size)]

    def _begin_group(self, batch: dict[str, Any], first: int) -> None:
        length = 1 if self._size.examples is not None else self._size.micro_batches or self._length
        last = min(first - first % length + length, self._length) - 1
        self.coming = [Piece(b, b, b) for b in (self._batches[first : last + 1] if self._batches else [batch])]
        for place, piece in enumerate(self.coming, first):
            piece.ends_group, piece.ends_window = place == last, place == self._length - 1
        self._choose_ascent(self.coming)

    def _choose_ascent(self, group: Sequence[Piece]) -> None:
        if self.fraction == 1:
            for piece in group:
                piece.ends_ascent = piece.ends_group
            return
        sizes = [first_dimension(piece.inputs) for piece in group]
        # Rounded first, because 0.3 times 10 is above 3 in floating point
        left = math.ceil(round(self.fraction * sum(sizes), 9))
        for piece, size in zip(group, sizes, strict=True):
            if left < size:
                piece.ascent_inputs = slice_examples(piece.inputs, 0, left) if left > 0 else None
            piece.ends_ascent = 0 < left <= size
            left -= size


def _with_batch(piece: Piece, batch: dict[str, Any]) -> Piece:
    """Put the micro-batch into the planned piece: a `training_step` of a subclass may have passed on a changed one."""
    if piece.ascends_whole:
        piece.ascent_inputs = batch
    elif piece.ascent_inputs is not None and piece.inputs is not batch:
        piece.ascent_inputs = slice_examples(batch, 0, first_dimension(piece.ascent_inputs))
    piece.inputs = piece.micro_batch = batch
    return piece


def first_dimension(batch: Mapping[str, Any]) -> int:
    """
    Return the number of examples of a micro-batch: the first dimension of every tensor in it.

    Raises:
        ValueError: two tensors disagree (packed sequences, image patches). Such inputs cannot be cut into examples.
    """
    examples, first_key = None, None
    for key, tensor in _tensors(batch):
        if examples is None:
            examples, first_key = tensor.shape[0], key
        elif tensor.shape[0] != examples:
            raise ValueError(
                f"{_CANNOT}: the first dimension of {key!r} is {tensor.shape[0]}, that of {first_key!r} is "
                f"{examples}. {_INSTEAD}"
            )
    if examples is None:
        raise ValueError(f"{_CANNOT}: it holds no tensor with a first dimension.")
    return examples


def slice_examples(batch: Mapping[str, Any], start: int, stop: int) -> Any:
    """Return the examples `start` to `stop` in a batch of the same type. Tensors are views; the rest is kept whole."""
    part: Any = copy.copy(batch)
    for key, value in batch.items():
        if isinstance(value, Mapping):
            part[key] = slice_examples(value, start, stop)
        elif isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.dim() > 0):
            part[key] = value[start:stop]
    return part


def _tensors(batch: Mapping[str, Any], prefix: str = ""):
    for key, value in batch.items():
        if isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            raise ValueError(f"{_CANNOT}: {prefix}{key!r} is a list of tensors. {_INSTEAD}")
        elif isinstance(value, Tensor) and value.dim() > 0:
            yield f"{prefix}{key}", value
