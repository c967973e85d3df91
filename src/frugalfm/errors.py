"""The two kinds of failure that a user can act on."""

__all__ = ["FrugalError", "InputError", "require_positive"]


class FrugalError(Exception):
    """A failure that the message explains; the command line prints it without a traceback."""


class InputError(FrugalError):
    """Input, option or artifact that cannot be used as it is: exit status 2.

    The message names the file (and line, where there is one), what is wrong, and the remedy.
    """


def require_positive(*, seed: int = 0, **options: float | None) -> None:
    """Refuse numbers of a verb that make no sense; None is an option that was not given."""
    if not 0 <= seed < 2**31:
        raise InputError(f"--seed must be at least 0 and below 2^31, not {seed}")
    for name, value in options.items():
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be positive, not {value}")
