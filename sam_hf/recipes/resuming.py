"""What a run starts from: a pretrained model, or a checkpoint in `output_dir` of a run that was the same."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from ..errors import UsageError
from ..trainer.checkpoints import last_whole_checkpoint, what_is_missing
from .run_record import RunRecord

_SHOWN = 4  # differences that an error names


@dataclass(frozen=True)
class Start:
    """
    What a run starts from.

    Attributes:
        resume_from: the checkpoint that training resumes from, if there is one.
        record: what determines the training. A resumed run has the identifier of the run that it resumes.
        note: what cannot be compared with the checkpoint, or differs from it.
        weights: where the weights were loaded from.
    """

    resume_from: str | None
    record: RunRecord
    note: str = ""
    weights: str = ""

    def line(self, state: Any, total: int) -> str:
        """
        Return the line that says what is resumed.

        Args:
            state ([`~transformers.TrainerState`]): the state in the checkpoint.
            total (`int`): the number of updates that this run asks for.
        """
        text = f"resuming {self.resume_from}: {state.global_step} of {total} updates done"
        if state.max_steps > 0 and state.max_steps != total:
            text += f" (it was made for {state.max_steps}: schedules go on as for {total})"
        return f"{text}; --overwrite_output_dir starts again{self.note}"


def find_start(args: Any, record: RunRecord, overwrite: bool) -> Start:
    """
    Return what the run with the arguments `args` starts from.

    Args:
        args (`TrainingArguments`): the training arguments.
        record (`RunRecord`): the record of what is asked for.
        overwrite (`bool`): do not resume from a checkpoint in `output_dir`.

    Raises:
        UsageError: the checkpoint in `output_dir` was trained with other options, or for longer.
    """
    given = args.resume_from_checkpoint
    if given:
        return _given(given, record)
    if overwrite or not args.do_train or not Path(args.output_dir).is_dir():
        return Start(None, record)
    checkpoint = _last_of_run(args)
    if checkpoint is None:
        return Start(None, record)
    trained = RunRecord.read(checkpoint)
    if trained is None:
        return Start(checkpoint, record, _nothing_to_compare(checkpoint))
    different = trained.differences(record)
    way_out = (
        "give --overwrite_output_dir to start again, another output_dir, or "
        f"--resume_from_checkpoint {checkpoint} to go on with other options"
    )
    if different:
        before = ", ".join(f"{name}={value}" for name, value, _ in different[:_SHOWN])
        asked = ", ".join(f"{name}={value}" for name, _, value in different[:_SHOWN])
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        holds = f"output_dir={args.output_dir} holds {Path(checkpoint).name} of a run with {before}{more}"
        raise UsageError(f"{holds}; this run asks for {asked}{more}: {way_out}")
    _refuse_shorter(args, checkpoint)
    return Start(checkpoint, RunRecord(record.options, trained.run))


def check_length(start: Start, state: Any, total: int) -> None:
    """Refuse a run that is shorter than what the checkpoint was trained for."""
    if state.global_step > total:
        raise UsageError(
            f"{start.resume_from} was trained for {state.global_step} updates, and this run asks for {total}: give "
            "--overwrite_output_dir to start again, or another output_dir"
        )


def say(args: Any, line: str) -> None:
    """Print a line on stderr, once for all processes."""
    if args.process_index == 0:
        print(line, file=sys.stderr, flush=True)


def _given(checkpoint: str, record: RunRecord) -> Start:
    """Return the start from a checkpoint that was named. It may have other options, since that can be meant."""
    if not Path(checkpoint).is_dir():
        raise UsageError(f"resume_from_checkpoint={checkpoint} does not exist")
    missing = what_is_missing(checkpoint, needs_optimizer=False)
    if missing is not None:
        raise UsageError(f"resume_from_checkpoint={checkpoint} is no complete checkpoint: {missing}")
    trained = RunRecord.read(checkpoint)
    if trained is None:
        return Start(checkpoint, record, _nothing_to_compare(checkpoint))
    different = ", ".join(f"{name}={value} (was {before})" for name, before, value in trained.differences(record))
    note = f"; it goes on with {different}" if different else ""
    return Start(checkpoint, RunRecord(record.options, record.run if different else trained.run), note)


def _last_of_run(args: Any) -> str | None:
    """Return the last complete checkpoint of the run that `output_dir` belongs to."""
    current = RunRecord.read(args.output_dir)
    if current is None:
        return last_whole_checkpoint(args.output_dir)

    def is_of_run(path: Path) -> bool:
        record = RunRecord.read(path)
        return record is not None and record.run == current.run

    checkpoint = last_whole_checkpoint(args.output_dir, is_of_run)
    if checkpoint is None and (other := last_whole_checkpoint(args.output_dir)) is not None:
        say(args, f"{other} is of an earlier run in this folder: it is not resumed")
    return checkpoint


def _refuse_shorter(args: Any, checkpoint: str) -> None:
    """Refuse early, where the number of updates is known without the data. See `check_length`."""
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    start = Start(checkpoint, RunRecord({}))
    if args.max_steps > 0:
        check_length(start, state, args.max_steps)
    elif state.epoch and state.global_step:
        # The last update may end beyond a number of epochs that is not whole
        per_epoch = state.global_step / state.epoch
        if (state.epoch - args.num_train_epochs) * per_epoch >= 1:
            check_length(start, state, int(args.num_train_epochs * per_epoch))


def _nothing_to_compare(checkpoint: str) -> str:
    return f" (it has no run.json: whether {Path(checkpoint).name} had the same options and data is not known)"
