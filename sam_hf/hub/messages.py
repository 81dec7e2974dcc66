"""What can go wrong between a run and the Hub, in words, and what keeps a token out of files. No transformers here."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NOT_PUSHED = ("_*", "checkpoint-*")  # what Trainer leaves out of a push of `output_dir`


class Secret(str):
    """A token that is pickled as `None`: `torch.save` of the arguments that hold it writes it nowhere."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(None), ()


@contextmanager
def token_kept_out_of_files(args: Any) -> Iterator[None]:
    """While Trainer pickles `args`: their `hub_token` can be used, and is not written."""
    token = args.hub_token
    args.hub_token = None if token is None else Secret(token)
    try:
        yield
    finally:
        args.hub_token = token


def status_of(error: BaseException) -> int | None:
    """The status that the Hub answered, or `None` where there was no answer."""
    return getattr(getattr(_origin(error), "response", None), "status_code", None)


def is_refusal(error: BaseException) -> bool:
    """Whether trying again would not help: the token, the rights, the name or the offline mode are to be changed."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    wrong_use = (HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled)
    return status_of(error) in (400, 401, 403, 404) or isinstance(_origin(error), wrong_use)


def reason(error: BaseException, repository: str, token: str | None) -> str:
    """Why the Hub could not be used, and what mends it: one line without full stop, and without the token."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    error, status = _origin(error), status_of(error)
    said = getattr(error, "server_message", None)
    said = f": {_line(said)}" if said else ""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so that the Hub cannot be reached: unset it"
    if isinstance(error, HFValidationError):
        return f"{repository!r} is no name of a repository ({_line(error)}): give another hub_model_id"
    if status == 401 and token is None and get_token() is None:
        return "there is no token: log in with `hf auth login`, or set HF_TOKEN"
    if status == 401:
        origin = "hub_token" if token is not None else "HF_TOKEN or of `hf auth login`"
        return f"the Hub at {constants.ENDPOINT} refused the token of {origin} (401{said}): give one that is valid"
    if status == 403:
        return f"the token may not write to {repository} (403{said}): use one with the right to write to it"
    if status is not None:
        return f"the Hub at {constants.ENDPOINT} answered {status}{said}"
    if _is_http(error):
        return f"the Hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}: {_line(error)})"
    return f"{type(error).__name__}: {_line(error)}"


def upload_command(
    repository: str, folder: str, path_in_repo: str = ".", revision: str | None = None, private: bool = False
) -> str:
    """The shell command that pushes a folder as Trainer would; `private`: if it has to make the repository."""
    words = ["hf", "upload", repository, folder, path_in_repo]
    if path_in_repo == ".":
        words += [word for pattern in NOT_PUSHED for word in ("--exclude", pattern)]
    if revision is not None:
        words += ["--revision", revision]
    if private:
        words.append("--private")
    return shlex.join(words)


def _origin(error: BaseException) -> BaseException:
    """What an upload failed of: the client wraps it where several files are uploaded."""
    cause: BaseException | None = error
    while cause is not None and not _is_http(cause):
        cause = cause.__cause__
    return error if cause is None else cause


def _is_http(error: BaseException) -> bool:
    """Whether the HTTP client raised it, which is one or the other library in the versions of the Hub client."""
    return any(base.__module__.split(".")[0] in ("httpx", "httpx2") for base in type(error).__mro__)


def _line(error: BaseException | str) -> str:
    return " ".join(str(error).split()).rstrip(".")
