"""Warnings of libraries that users of this project cannot act on."""

import logging
import warnings

MESSAGES = (
    ".*torch.jit.script.* is deprecated",
    "torch.meshgrid: in an upcoming release",
    "`broadcast_buffers` is deprecated",
    "TypedStorage is deprecated",
)


def silence_libraries() -> None:
    """Silence these warnings for the process; called before the libraries are imported."""
    for message in MESSAGES:
        warnings.filterwarnings("ignore", message=message)
    # "No CUDA runtime is found", if there is a compiler but no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
