"""Entry point: set up robust streams and signal handling, run the command, return the exit code.

Nothing else is imported before: the commands are in `app`, which takes a moment to build.
"""

from __future__ import annotations

import sys
from typing import Any

from vitp_pipeline.errors import OutputError, UserError
from vitp_pipeline.runtime import output
from vitp_pipeline.runtime.signals import ignore_signals, noticing_signals


def main() -> None:
    """Run the command line. A UserError becomes one line and its exit code; anything else is a bug, and raised."""
    output.guard_streams()
    with noticing_signals():
        try:
            code = _run()
        except SystemExit as end:  # a signal, a process that is not the main one, a library
            code = _code_of(end)
        ignore_signals()
    if code := _with_output(code):
        sys.exit(code)


def _run() -> int:
    try:
        from vitp_pipeline.cli.app import app

        return app(prog_name="vitp", standalone_mode=False) or 0
    except UserError as error:
        return _refused(error)
    except Exception as error:
        return _other(error)


def _refused(error: UserError) -> int:
    ignore_signals()
    output.tell(f"vitp: {error}")
    return error.exit_code


def _other(error: Exception) -> int:
    ignore_signals()
    from vitp_pipeline.storage.atomic_files import refusal

    if isinstance(error, OSError) and (refused := refusal(error)) is not None:
        return _refused(refused)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
        _show_usage_error(error)
        return int(error.exit_code)
    raise error


def _show_usage_error(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    command = error.ctx.command_path if getattr(error, "ctx", None) else "vitp"
    message = " ".join(error.format_message().split())
    message = message.rstrip(".")
    end = "" if message.endswith("?") else "."
    output.tell(f"vitp: {message}{end} See `{command} --help`")


def _code_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    output.tell(end.code)
    return 1


def _with_output(code: int) -> int:
    """Return the exit code, which also tells if output was lost; the command's work is kept in any case."""
    output.flush()
    if not output.lost:
        return code
    lost = " and ".join(f"{stream} ({reason})" for stream, reason in output.lost.items())
    output.tell(f"vitp: some output could not be written to {lost}; the results are complete")
    return code or OutputError.exit_code


if __name__ == "__main__":
    main()
