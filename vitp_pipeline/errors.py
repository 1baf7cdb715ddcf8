"""User errors, each kind with its own exit code.

A `UserError` is shown as one line plus a hint, never as a traceback; anything else that escapes is a bug and
shows one. The codes are part of the interface: job schedulers decide by them whether a retry can help.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user can fix. `message` names the file or option, `hint` says what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        end = "" if self.message.endswith(("?", ".")) else "."
        return f"{self.message}{end} {self.hint}" if self.hint else self.message


class UsageError(UserError):
    """A flag or recipe value that cannot be: unknown key, α outside [0, 1], shard out of range."""

    exit_code = 2


class InputError(UserError):
    """Data that cannot be read or does not agree: truncated image, unknown label id, missing annotation."""

    exit_code = 3


class MissingDataError(InputError):
    """Nothing lies where a split of the manifest names its files."""


class IncompatibleError(UserError):
    """Two things that must agree do not: a run made with other settings, class names, checkpoint shapes."""

    exit_code = 4


class MissingStageError(UserError):
    """A stage was started before the one whose results it reads has finished."""

    exit_code = 5


class CorruptError(UserError):
    """A committed artifact is damaged."""

    exit_code = 6


class PartialError(UserError):
    """The work ended, but some images failed or some shards are missing."""

    exit_code = 7


def partly_failed(what: str, failed: int, of: int, hint: str) -> PartialError:
    """Say how many of the images that a command was to make failed: the one place that words it.

    Args:
        what: the command. of: images that it was to make, those that were there included.
        hint: what to do about it.
    """
    if failed < of:
        rest = f"the other {of - failed} are done" if of - failed > 1 else "the other one is done"
        return PartialError(f"{what}: {failed} of {of} images failed, {rest}", hint)
    return PartialError(f"{what}: {f'all {of} images' if of > 1 else 'the only image'} failed", hint)


class StorageError(UserError):
    """The file system refused: disk full, read-only, no permission."""

    exit_code = 8


class LockedError(UserError):
    """Another task is at work on the same shard."""

    exit_code = 9


class OutputError(UserError):
    """The work ended well, but what it had to say could not be printed (EX_IOERR of sysexits.h)."""

    exit_code = 74


class StoppedError(UserError):
    """A signal asked the task to end before its work was done; what is finished is kept (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


class KeyboardStopError(StoppedError):
    """Ctrl-C, likewise."""

    exit_code = 130
