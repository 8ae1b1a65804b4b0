"""Loggers and warnings of other libraries: silenced, or limited in their output."""

import contextlib
import logging
import sys
import warnings
from typing import Callable, Iterator, Sequence

MESSAGES = (  # warnings that users cannot act on
    ".*torch.jit.script.* is deprecated",
    "torch.meshgrid: in an upcoming release",
    "`broadcast_buffers` is deprecated",
    "TypedStorage is deprecated",
    # On one core, images are loaded beside the training as well.
    "This DataLoader will create .* worker processes in total",
)
# Beginnings of Detectron2's long records, of hundreds of lines.
PAGES = (
    "Rank of current process",
    "Environment info:",
    "Command line arguments:",
    "Contents of args.config_file",
    "Running with full config:",
    "Model:",
)


def silence_libraries() -> None:
    """Silence warnings for the process; called before the libraries are imported."""
    for message in MESSAGES:
        warnings.filterwarnings("ignore", message=message)
    # "No CUDA runtime is found", if there is a compiler but no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


@contextlib.contextmanager
def silenced(logger_name: str, is_noise: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Drop the records of a logger that are noise; "" is the root logger."""
    logger = logging.getLogger(logger_name)

    def keep(record: logging.LogRecord) -> bool:
        return not is_noise(record)

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextlib.contextmanager
def restored(logger_names: Sequence[str]) -> Iterator[None]:
    """Remove the handlers that loggers get meanwhile, so that the next run of a process does not
    write to the log of this one.
    """
    loggers = [logging.getLogger(name) for name in logger_names]
    before = [(list(x.handlers), x.propagate, x.level) for x in loggers]
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before):
            logger.handlers[:] = handlers
            logger.propagate, logger.level = propagate, level


@contextlib.contextmanager
def at_level(logger_name: str, level: int) -> Iterator[None]:
    """Give a logger, and its children, another level."""
    logger = logging.getLogger(logger_name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def keep_pages_to_files(logger_names: Sequence[str]) -> None:
    """Keep long records of loggers from the terminal; their files contain them."""

    def is_short(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(PAGES)

    for name in logger_names:
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                handler.addFilter(is_short)


class WarningsAboveBars(logging.StreamHandler):
    """Prints the package's warnings and errors, which users can act on, above the progress bars of
    a terminal; other records are for files.
    """

    def __init__(self, stream):
        super().__init__(stream)
        self.setLevel(logging.WARNING)
        self.addFilter(logging.Filter("tood"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        from tqdm import tqdm  # here: the set-up of a new environment imports this file

        try:
            tqdm.write(f"warning: {record.getMessage()}", file=self.stream)
            self.flush()
        except Exception:
            self.handleError(record)


def keep_logs_to_files(logger_names: Sequence[str]) -> None:
    """Replace the terminal's handlers of loggers by :class:`WarningsAboveBars`."""
    for name in logger_names:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            stream = getattr(handler, "stream", None)
            if stream in (sys.stdout, sys.stderr):
                logger.removeHandler(handler)
                logger.addHandler(WarningsAboveBars(stream))
