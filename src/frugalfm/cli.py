"""The command line: finds the verb, parses its signature, prints its errors.

A verb's signature and docstring are its options and their help. Nothing heavy is imported here
or at the top of a verb's file, so that help is instant.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from cyclopts import App, CycloptsError, CycloptsPanel, MissingArgumentError, Parameter

import frugalfm
from frugalfm import VERBS, __version__
from frugalfm.errors import FrugalError, FrugalWarning, InputError

__all__ = ["main"]

_EPILOGUE = "With any verb, --traceback shows an error's full traceback."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0 done, 1 failed, 2 bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with_traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    try:
        with _plain_warnings():
            _make_app()(words)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (as with `| head`); say nothing more at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # The last resort: one line instead of a traceback.
        if with_traceback:
            raise
        return _report(error)
    return 0


def _make_app() -> App:
    app = App(
        name="frugalfm",
        help="Biological foundation models at a fraction of the data, compute and memory.",
        help_epilogue=_EPILOGUE,
        help_format="plaintext",
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
        error_formatter=_explain,
    )
    for verb in VERBS:
        app.command(getattr(frugalfm, verb), name=verb.replace("_", "-"))
    return app


def _explain(error: CycloptsError) -> Any:
    """Tell an option that was left out from one that was given without a value."""
    given = error.argument is None or error.argument.tokens
    if isinstance(error, MissingArgumentError) and error.keyword is None and not given:
        return CycloptsPanel(str(error).replace("requires an argument", "is required"))
    return CycloptsPanel(error)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings of ours as one line, without the place in our source; others as ever."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_plainly(
            message: Warning | str, category: type[Warning], *rest: Any, **others: Any
        ) -> None:
            if not issubclass(category, FrugalWarning):
                show(message, category, *rest, **others)
                return
            from tqdm import tqdm  # not before it is needed, so that help is instant

            tqdm.write(f"warning: {message}", file=sys.stderr)  # above a progress bar

        warnings.showwarning = show_plainly
        yield


def _report(error: Exception) -> int:
    if isinstance(error, FrugalError):
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    if isinstance(error, OSError) and error.filename:
        print(f"error: {os.fsdecode(error.filename)}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"internal error: {type(error).__name__}: {error}", file=sys.stderr)
    print("please report it with the output of the same command and --traceback", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
