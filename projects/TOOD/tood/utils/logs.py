"""Loggers of other libraries, kept quiet for a while."""

import contextlib
import logging
from typing import Callable, Iterator

__all__ = ["silenced"]


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
