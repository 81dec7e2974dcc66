"""Why a push to the Hub failed and what to do about it, in words. Also keeps a token out of files."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled


class Secret(str):
    """A token that is pickled as `None`, so that `torch.save` of the arguments does not write it."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(None), ()


@contextmanager
def token_kept_out_of_files(args: Any) -> Iterator[None]:
    """Keep `args.hub_token` usable, but out of the file, while Trainer pickles `args`."""
    token = args.hub_token
    args.hub_token = None if token is None else Secret(token)
    try:
        yield
    finally:
        args.hub_token = token


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the Hub's answer, or `None` if there was no answer."""
    return getattr(getattr(_http_cause(error), "response", None), "status_code", None)


def is_refusal(error: BaseException) -> bool:
    """Return whether a retry is useless until the token, the rights, the name or the offline mode is changed."""
    refusals = (HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled)
    return status_of(error) in (400, 401, 403, 404) or isinstance(_http_cause(error), refusals)


def failure_reason(error: BaseException, repository: str, token: str | None) -> str:
    """Return why the Hub could not be used and how to fix it: one line without a full stop and without the token."""
    error, status = _http_cause(error), status_of(error)
    detail = f": {_one_line(answer)}" if (answer := getattr(error, "server_message", None)) else ""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub cannot be reached: unset it"
    if isinstance(error, HFValidationError):
        return f"{repository!r} is not a valid repository name ({_one_line(error)}): give another hub_model_id"
    if status == 401 and token is None and get_token() is None:
        return "there is no token: log in with `hf auth login`, or set HF_TOKEN"
    if status == 401:
        source = "hub_token" if token is not None else "HF_TOKEN or `hf auth login`"
        return f"the Hub at {constants.ENDPOINT} refused the token from {source} (401{detail}): give a valid token"
    if status == 403:
        return f"the token has no write access to {repository} (403{detail}): use a token that has it"
    if status is not None:
        return f"the Hub at {constants.ENDPOINT} answered {status}{detail}"
    if _is_http(error):
        return f"the Hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}: {_one_line(error)})"
    return f"{type(error).__name__}: {_one_line(error)}"


def upload_command(repository: str, folder: str, path_in_repo: str, revision: str | None, private: bool) -> str:
    """Return the shell command that pushes a folder as Trainer does. `private` counts if it creates the repository."""
    words = ["hf", "upload", repository, folder, path_in_repo]
    words += ["--exclude", "_*", "--exclude", "checkpoint-*"] if path_in_repo == "." else []
    words += ["--revision", revision] if revision is not None else []
    words += ["--private"] if private else []
    return shlex.join(words)


def _http_cause(error: BaseException) -> BaseException:
    """Return the HTTP error that caused `error`, else `error`: the client wraps it when it uploads several files."""
    cause: BaseException | None = error
    while cause is not None and not _is_http(cause):
        cause = cause.__cause__
    return error if cause is None else cause


def _is_http(error: BaseException) -> bool:
    """Return whether the HTTP library raised `error`. Which library it is depends on the version of the Hub client."""
    return any(base.__module__.split(".")[0] in ("httpx", "httpx2") for base in type(error).__mro__)


def _one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split()).rstrip(".")
