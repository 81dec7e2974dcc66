"""Pushing to the Hub so that a failed push never costs the training, and no token is written to a file."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import hf_api

from ..errors import HubError, HubRefusedError
from .card_names import data_arguments, local_base_models
from .messages import failure_reason, is_refusal, status_of, token_kept_out_of_files, upload_command
from .model_card import CardFacts, complete_card, sam_was_used
from .own_cards import CARD, complete_if_written, complete_own_cards, written_at

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object


class HubMixin(_Trainer):
    """
    The part of [`SAMMixin`] that pushes. What [`~transformers.Trainer`] pushes, when and where stays the same.

    Trainer ignores a failed push in the background. At the end of training, it raises whatever error the Hub client
    raises. Here both cases say what happened, that the model is saved, and what to do next. `_save`,
    `_push_from_checkpoint` and `_finish_current_push` are private methods of Trainer without a public counterpart. The
    first two pickle its arguments.

    Attributes:
        model_card_facts (`dict[str, str]`):
            Rows that a program adds to the model card's table, for example the label noise.
    """

    sam_args: Any
    model_card_facts: dict[str, str]
    _sam_local_names: set[str]
    _sam_pushes: list[tuple[Future, str, str]]  # unfinished: the job, the folder, the path in the repository
    _sam_saved_to_push: bool = False

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Create the repository and the branch `hub_revision`, and check the right to write. Trainer calls this when it
        is built, so a run that could not be pushed fails before it trains.

        Raises:
            HubRefusedError: the token, its rights or the name of the repository are wrong.
            HubError: the Hub cannot be reached.
        """
        if not self.is_world_process_zero():
            return
        token = self.args.hub_token if token is None else token
        try:
            super().init_hf_repo(token=token, private=private)
            self._check_rights(token)
            self._create_branch(self.args.hub_revision, token)
        except Exception as error:
            self.hub_model_id = None  # the next push tries again
            raise self._hub_error(error, token) from error

    def train(self, *args, **kwargs) -> Any:
        """See [`~transformers.Trainer.train`]. Cards that the model writes itself then say how SAM was used too."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._complete_own_cards()

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
            HubError: nothing was pushed. The model and its card are still in `output_dir`.
        """
        self._sam_saved_to_push = False
        token = self.args.hub_token if token is None else token
        try:
            if self.hub_model_id is None:
                self.init_hf_repo(token=token, private=private)
            self._create_branch(revision, token)
        except Exception as error:
            self.save_model(_internal_call=True)
            raise self._not_pushed(error, token, revision, private) from error
        try:
            pushed = super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        except Exception as error:
            if not self._sam_saved_to_push:
                raise
            raise self._not_pushed(error, token, revision, private) from error
        if isinstance(pushed, Future):
            pushed.add_done_callback(partial(self._warn_if_failed, folder=self._output_dir, revision=revision))
        return pushed

    def create_model_card(self, *args, **kwargs) -> None:
        """See [`~transformers.Trainer.create_model_card`]. The card also says how SAM was used."""
        self._sam_saved_to_push = True
        write_card = super().create_model_card
        names_data = args or kwargs.keys() & {"dataset", "dataset_tags"}
        if not names_data and "dataset_tags" in signature(write_card).parameters:
            kwargs |= data_arguments(self)
        self._complete_own_cards(kwargs.get("finetuned_from"))  # Trainer lets PEFT write into its card
        write_card(*args, **kwargs)
        if self.is_world_process_zero():
            complete_card(self, Path(self._output_dir) / CARD, kwargs.get("finetuned_from"))

    def _complete_own_cards(self, finetuned_from: str | None = None) -> None:
        if sam_was_used(self):
            complete_own_cards(self.model, CardFacts.of(self, finetuned_from))

    def _save(self, output_dir: str | None = None, *args, **kwargs) -> None:
        path = Path(output_dir or self._output_dir) / CARD
        before = written_at(path)
        with token_kept_out_of_files(self.args):
            super()._save(output_dir, *args, **kwargs)
        # PEFT and sentence-transformers write a card with the model. Any other card there is the user's
        if self.args.should_save:
            complete_if_written(path, before, CardFacts.of(self))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.hub_always_push:
            # The next push overwrites the model that the current one is reading
            self._finish_current_push()
        self._report_pushes()
        known = set(self._running_pushes())
        try:
            with token_kept_out_of_files(self.args):
                super()._push_from_checkpoint(checkpoint_folder)
        except Exception as error:  # any error: the checkpoint is written, and training matters more than a push
            self._warn(error, self._output_dir)
        started = [job for job in self._running_pushes() if job not in known]
        only_last = self.args.hub_strategy == HubStrategy.CHECKPOINT
        path_in_repo = "last-checkpoint" if only_last else Path(checkpoint_folder).name
        self._sam_pushes += zip(started, (self._output_dir, checkpoint_folder), (".", path_in_repo), strict=False)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._report_pushes()

    def _running_pushes(self) -> list[Future]:
        running = getattr(self, "push_in_progress", None)
        return [] if running is None else running.jobs

    def _remember_local_names(self) -> None:
        """Note now which base models are folders: training may delete the checkpoint that it started from."""
        self._sam_local_names = local_base_models(self.model)

    def _check_rights(self, token: str | None) -> None:
        """Raise the Hub's error if the token may not write. Creating a repository that exists does not check this."""
        try:
            hf_api().auth_check(str(self.hub_model_id), token=token, write=True)
        except Exception as error:
            if status_of(error) in (401, 403):
                raise  # any other error: a server other than the Hub may not have this route

    def _create_branch(self, revision: str | None, token: str | None) -> None:
        """Create the branch to push to, which Trainer does not do."""
        if revision is None or revision == "main" or revision.startswith("refs/") or self.hub_model_id is None:
            return
        hf_api().create_branch(self.hub_model_id, branch=revision, token=token, exist_ok=True)

    @property
    def _output_dir(self) -> str:
        return str(self.args.output_dir)

    def _repository_name(self) -> str:
        return self.hub_model_id or self.args.hub_model_id or Path(self._output_dir).absolute().name

    def _hub_error(self, error: Exception, token: str | None) -> HubError:
        if isinstance(error, HubError):
            return error
        kind = HubRefusedError if is_refusal(error) else HubError
        return kind(f"push_to_hub: {failure_reason(error, self._repository_name(), token)}.")

    def _not_pushed(self, error: Exception, token: str | None, revision: str | None, private: bool | None) -> HubError:
        by_hand = self._push_by_hand(self._output_dir, revision=revision, private=private)
        saved = f"Nothing is lost: the model is in {self._output_dir}."
        return HubError(f"{self._hub_error(error, token)} {saved} {by_hand}")

    def _push_by_hand(
        self, folder: str, path_in_repo: str = ".", revision: str | None = None, private: bool | None = None
    ) -> str:
        revision = self.args.hub_revision if revision is None else revision
        private = bool(self.args.hub_private_repo if private is None else private)
        return "Push it with: " + upload_command(self._repository_name(), folder, path_in_repo, revision, private)

    def _report_pushes(self) -> None:
        """Warn about each push from a checkpoint that has failed since the last call."""
        pushes, self._sam_pushes = self._sam_pushes, []
        for job, folder, path_in_repo in pushes:
            if job.done():
                self._warn_if_failed(job, folder, path_in_repo)
            else:
                self._sam_pushes.append((job, folder, path_in_repo))

    def _warn_if_failed(self, job: Future, folder: str, path_in_repo: str = ".", revision: str | None = None) -> None:
        if not job.cancelled() and (error := job.exception()) is not None:
            self._warn(error, folder, path_in_repo, revision)

    def _warn(self, error: BaseException, folder: str, path_in_repo: str = ".", revision: str | None = None) -> None:
        reason = failure_reason(error, self._repository_name(), self.args.hub_token)
        logger.warning(
            f"The push of {folder} failed: {reason}. Training is not affected: all files are saved there, and the "
            f"next push sends what is missing. {self._push_by_hand(folder, path_in_repo, revision)}"
        )
