"""Mistakes that users can mend: told in one sentence, without a traceback."""

__all__ = ["UserError"]


class UserError(Exception):
    """
    Its message names the file, key or value that is wrong, and says what to do.

    Raised in a data loader's worker process, it arrives in the main process with a traceback
    around its message; :meth:`sentence` is the message alone.
    """

    def sentence(self) -> str:
        message = str(self).strip()
        _, marker, inner = message.rpartition(f"{type(self).__name__}: ")
        return inner.strip() if marker else message
