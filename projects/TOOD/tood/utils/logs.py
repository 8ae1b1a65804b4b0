"""Loggers of other libraries, silenced for a while."""

import contextlib
import logging
from typing import Callable, Iterator


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
def at_level(logger_name: str, level: int) -> Iterator[None]:
    """Give a logger, and its children, another level."""
    logger = logging.getLogger(logger_name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
