"""One family of errors. Each carries the exit code that the app, and only the app, leaves with.

The message says what was found, what was wanted, and what to type next. `ValueError` stays for a
caller's bug in Python code, `assert` for ours.
"""


class AlignvlError(Exception):
    """Something the user can act on; never raised for a bug of ours."""

    exit_code = 1


class UsageError(AlignvlError):
    """Wrong whatever the data hold: unknown value, contradiction, a device that is not there."""

    exit_code = 2


class DataError(AlignvlError):
    """Data or an artefact is missing, unreadable or invalid."""

    exit_code = 3


class MismatchError(AlignvlError):
    """Two artefacts, each sound, that do not belong together."""

    exit_code = 4


class DivergedError(AlignvlError):
    """Training left the finite numbers; the last good state is kept."""

    exit_code = 5


class RejectedError(AlignvlError):
    """The stage finished and its artefact is complete, but too many items were rejected."""

    exit_code = 6


def check_flag(holds: bool, flag: str, wanted: str, got: object) -> None:
    """UsageError when what was given after `--flag` does not hold."""
    if not holds:
        raise UsageError(f"--{flag}: wanted {wanted}, got {got}")
