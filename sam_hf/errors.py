"""The errors that users meet."""

from __future__ import annotations


class UsageError(Exception):
    """Wrong use: the message, one line, says what was given and what is allowed."""


class BrokenImageError(UsageError):
    """An image that cannot be decoded."""

    def __init__(self, message: str):
        # The main process raises a DataLoader worker's exception again, with the worker's traceback as its message
        super().__init__(message.strip().rpartition(f"{type(self).__name__}: ")[2])


class HubError(RuntimeError):
    """The Hub could not be used; the message says why, and what to do next."""


class HubRefusedError(HubError):
    """The Hub refuses what was asked before anything was trained: a wrong token, no right to write, a wrong name."""


class DivergedError(RuntimeError):
    """Training or evaluation ended with numbers that are not finite; the message says where, and what was written."""
