"""The two kinds of failure that a user can act on."""

__all__ = ["FrugalError", "InputError"]


class FrugalError(Exception):
    """A failure that the message explains; the command line prints it without a traceback."""


class InputError(FrugalError):
    """Input, option or artifact that cannot be used as it is: exit status 2.

    The message names the file (and line, where there is one), what is wrong, and the remedy.
    """
