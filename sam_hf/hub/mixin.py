"""Pushing to the Hub: training is never lost to it, and no token goes into a file."""

from __future__ import annotations

import os
from concurrent.futures import Future
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..errors import HubError, HubRefusedError
from .messages import is_refusal, reason, status_of, token_kept_out_of_files, upload_command
from .model_card import base_model_names, complete_card, data_arguments, keep_local_names_out

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object


class HubMixin(_Trainer):
    """
    Part of [`SAMMixin`]: what [`~transformers.Trainer`] pushes, when, and to where, stays as it is.

    What it pushes in the background fails without a word, and what it pushes at the end fails with whatever error the
    Hub client raises. Here both say what happened, that the model is saved, and what to do next. `_save`,
    `_push_from_checkpoint` and `_finish_current_push` are private to Trainer and have no public counterpart: the first
    two are where it pickles its arguments.

    Attributes:
        model_card_facts (`dict[str, str]`):
            Rows that a program adds to the model card's table, as the noise it put on the labels.
    """

    sam_args: Any
    model_card_facts: dict[str, str]
    _sam_local_names: set[str]
    _sam_pushes: list[tuple[Future, str, str]]
    _sam_saved_to_push: bool = False

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Create the repository and the branch `hub_revision`, and ask for the right to write: Trainer calls this when it
        is built, so that nothing is trained that could not be pushed.

        Raises:
            HubRefusedError: the token, its rights or the name of the repository are wrong.
            HubError: the Hub cannot be reached.
        """
        if not self.is_world_process_zero():
            return
        try:
            super().init_hf_repo(token=token, private=private)
            self._check_rights(token if token is not None else self.args.hub_token)
            self._make_branch(self.args.hub_revision, token)
        except Exception as error:
            self.hub_model_id = None  # the next push tries again
            raise self._hub_error(error, token) from error

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> Any:
        """
        See [`~transformers.Trainer.push_to_hub`].

        Raises:
            HubError: nothing was pushed. The model and its card are in `output_dir` all the same.
        """
        self._sam_saved_to_push = False
        try:
            self._prepare_push(token, revision, private)
        except HubError as error:
            self.save_model(_internal_call=True)
            raise self._not_pushed(error, revision, private) from error
        try:
            pushed = super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        except Exception as error:
            if not self._sam_saved_to_push:
                raise
            raise self._not_pushed(self._hub_error(error, token), revision, private) from error
        if isinstance(pushed, Future):
            pushed.add_done_callback(partial(self._report_last, revision=revision))
        return pushed

    def create_model_card(self, *args, **kwargs) -> None:
        """See [`~transformers.Trainer.create_model_card`]; the card then says how SAM was used."""
        self._sam_saved_to_push = True
        own = super().create_model_card
        data_given = args or kwargs.keys() & {"dataset", "dataset_tags"}
        if not data_given and "dataset_tags" in signature(own).parameters:
            kwargs |= data_arguments(self)
        own(*args, **kwargs)
        if self.is_world_process_zero():
            complete_card(self, Path(self._output_dir) / "README.md", kwargs.get("finetuned_from"))

    def _save(self, output_dir: str | None = None, *args, **kwargs) -> None:
        with token_kept_out_of_files(self.args):
            super()._save(output_dir, *args, **kwargs)
        # PEFT writes a card beside its adapters, with the path of a local base model as its name
        card = Path(output_dir or self._output_dir) / "README.md"
        if self._sam_local_names and self.args.should_save and card.is_file():
            keep_local_names_out(card, self._sam_local_names)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.hub_always_push:
            # The next push copies the model over the one that is being read
            self._finish_current_push()
        self._report_pushes()
        running = getattr(self, "push_in_progress", None)
        known = set() if running is None else set(running.jobs)
        try:
            with token_kept_out_of_files(self.args):
                super()._push_from_checkpoint(checkpoint_folder)
        except Exception as error:  # whatever it is: the checkpoint is written, and training is worth more than a push
            self._warn(error, self._output_dir)
        running = getattr(self, "push_in_progress", None)
        started = [] if running is None else [job for job in running.jobs if job not in known]
        only_last = self.args.hub_strategy == HubStrategy.CHECKPOINT
        in_repo = "last-checkpoint" if only_last else Path(checkpoint_folder).name
        self._sam_pushes += zip(started, (self._output_dir, checkpoint_folder), (".", in_repo), strict=False)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._report_pushes()

    def _remember_local_names(self) -> None:
        """Names of base models that are folders now. A checkpoint that training started from may be deleted later."""
        names = base_model_names(self.model)
        self._sam_local_names = {name for name in names if os.path.isdir(name)}

    def _check_rights(self, token: str | None) -> None:
        """A token that may only read is told so by the repository's creation, but not where it existed before."""
        from transformers.utils.hub import hf_api

        try:
            hf_api().auth_check(str(self.hub_model_id), token=token, write=True)
        except Exception as error:
            if status_of(error) in (401, 403):
                raise  # anything else: another server than the Hub may not know the question

    def _make_branch(self, revision: str | None, token: str | None) -> None:
        """Trainer pushes to a branch, and does not make it."""
        from transformers.utils.hub import hf_api

        if revision is None or revision == "main" or revision.startswith("refs/") or self.hub_model_id is None:
            return
        token = token if token is not None else self.args.hub_token
        hf_api().create_branch(self.hub_model_id, branch=revision, token=token, exist_ok=True)

    @property
    def _output_dir(self) -> str:
        return str(self.args.output_dir)

    def _repository_name(self) -> str:
        return self.hub_model_id or self.args.hub_model_id or Path(self._output_dir).absolute().name

    def _prepare_push(self, token: str | None, revision: str | None, private: bool | None) -> None:
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        try:
            self._make_branch(revision, token)
        except Exception as error:
            raise self._hub_error(error, token) from error

    def _hub_error(self, error: Exception, token: str | None) -> HubError:
        token = token if token is not None else self.args.hub_token
        kind = HubRefusedError if is_refusal(error) else HubError
        return kind(f"push_to_hub: {reason(error, self._repository_name(), token)}.")

    def _not_pushed(self, error: HubError, revision: str | None, private: bool | None) -> HubError:
        """The same once something was trained."""
        by_hand = self._push_by_hand(self._output_dir, revision=revision, private=private)
        return HubError(f"{error} Nothing is lost: the model is in {self._output_dir}. {by_hand}")

    def _push_by_hand(
        self, folder: str, path_in_repo: str = ".", revision: str | None = None, private: bool | None = None
    ) -> str:
        revision = revision if revision is not None else self.args.hub_revision
        private = bool(private if private is not None else self.args.hub_private_repo)
        return "Push it with: " + upload_command(self._repository_name(), folder, path_in_repo, revision, private)

    def _report_last(self, job: Future, revision: str | None) -> None:
        """Called in the background: nothing of the trainer's may come after the last push."""
        if not job.cancelled() and (error := job.exception()) is not None:
            self._warn(error, self._output_dir, revision=revision)

    def _report_pushes(self) -> None:
        """Say which of the pushes from checkpoints have failed since this was asked last."""
        pushes, self._sam_pushes = self._sam_pushes, []
        for job, folder, path_in_repo in pushes:
            if not job.done():
                self._sam_pushes.append((job, folder, path_in_repo))
            elif not job.cancelled() and (error := job.exception()) is not None:
                self._warn(error, folder, path_in_repo)

    def _warn(self, error: BaseException, folder: str, path_in_repo: str = ".", revision: str | None = None) -> None:
        why = reason(error, self._repository_name(), self.args.hub_token)
        logger.warning(
            f"The push of {folder} failed: {why}. Training is not affected, all is saved there, and the next push "
            f"sends what is missing. {self._push_by_hand(folder, path_in_repo, revision)}"
        )
