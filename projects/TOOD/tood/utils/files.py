"""Files that are written whole or not at all, and read without running what is in them."""

import contextlib
import json
import math
import os
import pickle
import re
import tempfile
from typing import BinaryIO, Dict, Iterator

import torch
from PIL import Image

from tood.utils.errors import UserError


def check_folder(folder: str, key: str = "OUTPUT_DIR") -> None:
    """Make a folder to write to, if there is none.

    Args:
        key: what named it.

    Raises:
        UserError: where that, or writing into it, cannot be done.
    """
    if "://" in folder:
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"The folder {folder} ({key}) cannot be written to ({error.strerror}); name another "
            f"one with {key}."
        ) from error


def check_image_output(path: str) -> None:
    """Make the folder of an image that is going to be written.

    Raises:
        UserError: for a format that Pillow cannot write, or a folder that cannot be used.
    """
    suffix = os.path.splitext(path)[1].lower()
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise UserError(f"No image can be written to {path}; let its name end in .png or .jpg.")
    check_folder(os.path.dirname(path) or ".", "--output")


def read_tensors(path: str) -> Dict:
    """Read a file of tensors and plain values without running anything that is in it.

    Raises:
        UserError: for a file that is not there, is damaged, or holds more than that.
    """
    if not os.path.isfile(path):
        raise UserError(f"The checkpoint {path} does not exist.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever their bytes lead to
        refused = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise UserError(
                f"The checkpoint {path} is refused: reading it would run code, for it needs "
                f"{refused.group(1)}; save its state_dict alone, with the program that wrote it."
            ) from error
        raise UserError(
            f"The checkpoint {path} is damaged, or is not a checkpoint; get it again."
        ) from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"The checkpoint {path} holds no state dict.")
    return content


@contextlib.contextmanager
def written_whole(path: str) -> Iterator[BinaryIO]:
    """Give a file to write to that becomes ``path`` at the end, or nothing after any error.

    Raises:
        UserError: where it cannot be written.
    """
    part = f"{path}.part"  # the next writer overwrites what a killed process leaves
    try:
        try:
            with open(part, "wb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())  # the machine may go down, too
            os.replace(part, path)
        finally:
            if os.path.exists(part):
                os.remove(part)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be written ({reason}).") from error


def write_atomically(content: Dict, path: str) -> None:
    """Save a checkpoint whole or not at all.

    Raises:
        UserError: where it cannot be written, or could not be read by Detectron2.
    """
    if not path.endswith(".pth"):
        raise UserError(f"The name {path} must end in .pth for Detectron2 to read it.")
    with written_whole(path) as f:
        torch.save(content, f)


def write_whole(path: str, content: bytes) -> None:
    """Write a file whole or not at all; raise UserError where it cannot be written."""
    with written_whole(path) as f:
        f.write(content)


def write_json(content, path: str) -> None:
    """Write JSON, with null for NaN; raise UserError where it cannot be written."""
    text = json.dumps(_without_nan(content), indent=1)
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from error
    write_whole(path, text.encode())


def _without_nan(content):
    """JSON has no NaN."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    return None if isinstance(content, float) and math.isnan(content) else content
