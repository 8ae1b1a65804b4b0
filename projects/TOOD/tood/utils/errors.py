"""Errors that users can repair, in one sentence each."""

import re
import sys
from typing import Callable


class UserError(Exception):
    """Its message names the file, key or value that is wrong, and says what to do.

    Raised in a data loader's worker or in one of several training processes, it arrives with a
    traceback around its message; :meth:`sentence` is the message alone.
    """

    def sentence(self) -> str:
        message = str(self).strip()
        _, marker, inner = message.rpartition(f"\n{type(self).__module__}.{type(self).__name__}: ")
        return shorten(inner.strip() if marker else message, 1500)


def shorten(text: str, limit: int = 500) -> str:
    """Return a text, which may contain what a file states, as one line that can be printed."""
    text = " ".join(text.encode(errors="backslashreplace").decode().splitlines())
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"


def format_reason(error: BaseException, limit: int = 200) -> str:
    """Return the message of a library's error for use in a sentence: one line of at most ``limit``
    characters, without terminal codes and addresses of objects.
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r" (at|of)? ?<[^<>]* (object )?at 0x[0-9a-f]+>|<_io\.\S+ [^<>]*>", "", text)
    return " ".join(text.split())[:limit].rstrip(" .!:") or type(error).__name__


def run_main(main: Callable[[], object], stopped: str = "stopped.") -> None:
    """Call a program. A ``UserError`` or a file that cannot be used ends it with one sentence and
    exit status 1, Ctrl-C with 130.
    """
    if hasattr(sys.stdout, "reconfigure"):  # names of files may be in any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error.sentence()}")
    except KeyboardInterrupt:
        print(f"error: {stopped}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        reason = error.strerror or format_reason(error)
        sys.exit(f"error: {error.filename or 'A file'} cannot be used ({reason}).")
