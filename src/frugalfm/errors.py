"""The two kinds of failure that a user can act on, and warnings of what may be one."""

import inspect
import warnings

__all__ = [
    "FrugalError",
    "FrugalWarning",
    "InputError",
    "require_not_negative",
    "require_positive",
    "warn",
]

_PACKAGE = __name__.partition(".")[0] + "."


class FrugalError(Exception):
    """A failure that the message explains; the command line prints it without a traceback."""


class InputError(FrugalError):
    """Input, option or artifact that cannot be used as it is: exit status 2.

    The message names the file (and line, where there is one), what is wrong, and the remedy.
    """


class FrugalWarning(UserWarning):
    """Something that works and is probably not meant; the command line prints it as one line."""


def warn(message: str) -> None:
    """Warn with a :class:`FrugalWarning` of the line outside of the package that led here."""
    level, frame = 1, inspect.currentframe()  # only Python 3.12 can skip a package's own files
    while frame is not None and frame.f_globals["__name__"].startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, FrugalWarning, stacklevel=level)


def require_positive(*, seed: int = 0, **options: float | None) -> None:
    """Refuse numbers of a verb that make no sense; None is an option that was not given."""
    if not 0 <= seed < 2**31:
        raise InputError(f"--seed must be at least 0 and below 2^31, not {seed}")
    for name, value in options.items():
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be positive, not {value}")


def require_not_negative(**options: float | None) -> None:
    """Refuse numbers of a verb that may be 0 and are less, or are not finite."""
    for name, value in options.items():
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be at least 0, not {value}")
