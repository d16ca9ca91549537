"""Errors that a user can act on, and the exit codes they map to."""


class MipsError(Exception):
    """Something outside the code went wrong: one line that names cause and remedy (exit code 1)."""

    exit_code = 1


class UsageError(MipsError):
    """The command itself is wrong, such as an unknown key or a missing column (exit code 2)."""

    exit_code = 2
