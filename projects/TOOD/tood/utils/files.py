"""Files and folders to write to, and files that are written whole or not at all."""

import contextlib
import errno
import glob
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import tempfile
import time
import uuid
from typing import BinaryIO, Callable, Collection, Dict, Iterable, Iterator, List, Optional

import numpy as np
from PIL import Image

from tood.utils.errors import UserError, format_reason
from tood.utils.folders import DRAWN, is_drawing, make_drawing_options, make_output, remove_output

MOST_BYTES = 255  # in a name, on most disks
PART = f".{'[0-9a-f]' * 8}.part"  # pattern of the ends of names of files that are not whole


def compute_sha256(path: str) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def check_folder(folder: str, key: str = "OUTPUT_DIR", *, is_data: bool = False) -> None:
    """Make a folder to write to, unless it exists.

    Args:
        key: the config key or flag that names it.
        is_data: a data set is written to it; other new folders are marked as output, which is not
            read as data.

    Raises:
        UserError: if it cannot be made or written to.
    """
    if "://" in folder:
        return
    _made.extend(reversed(_list_missing(folder)))
    try:
        os.makedirs(folder, exist_ok=True) if is_data else make_output(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _make_error(folder, key, str(error.strerror)) from error


def refuse_existing(folder: str, names: Iterable[str], overwrite: bool) -> None:
    """Raise UserError if one of the files that will be written to a folder exists, or is a folder,
    which is never overwritten.
    """
    for path in (os.path.join(folder, name) for name in names):
        refuse_folder(path)
        if os.path.exists(path) and not overwrite:
            raise UserError(f"{path} already exists; name another --output, or --overwrite.")


def refuse_folder(path: str) -> None:
    """Raise UserError for a folder in the place of a file to write."""
    if os.path.isdir(path) or path.endswith(("/", os.sep)):
        raise UserError(f"{path} is a folder; name a file.")


def refuse_file(folder: str, key: str) -> None:
    """Raise UserError for a folder that :func:`check_folder` could not make, because it or one
    above it is a file. Nothing is made.
    """
    missing = _list_missing(folder)
    existing = os.path.dirname(missing[-1]) if missing else folder
    if existing and not os.path.isdir(existing):
        raise _make_error(folder, key, os.strerror(errno.ENOTDIR))


def _make_error(folder: str, key: str, reason: str) -> UserError:
    return UserError(
        f"The folder {folder} ({key}) cannot be written to ({reason}); name another one with {key}."
    )


_made: List[str] = []  # folders, by check_folder


def _list_missing(folder: str) -> List[str]:
    """Return a folder and those above it that do not exist, the innermost first."""
    missing = []
    while folder and not os.path.exists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


@contextlib.contextmanager
def without_empty_folders() -> Iterator[None]:
    """After an error, remove the folders that :func:`check_folder` has made, if they are empty."""
    before = len(_made)
    try:
        yield
    except BaseException:  # Ctrl-C as well
        for folder in reversed(_made[before:]):
            with contextlib.suppress(OSError):
                remove_output(folder)
        raise
    finally:
        del _made[before:]


def count_up(path: str, is_used: Callable[[str], bool] = os.path.exists, suffix: str = "") -> str:
    """Return the first of PATH, PATH-2, PATH-3 and so on, each with a suffix, that is not used."""
    numbered = (f"{path}-{number}{suffix}" for number in itertools.count(2))
    return next(x for x in itertools.chain([path + suffix], numbered) if not is_used(x))


def list_counted(path: str) -> List[str]:
    """Return those of PATH, PATH-2, PATH-3 and so on that exist, the highest number first."""
    suffixes = [x[len(path) + 1 :] for x in glob.glob(f"{glob.escape(path)}-*")]
    numbers = sorted((int(x) for x in suffixes if re.fullmatch("[1-9][0-9]*", x)), reverse=True)
    found = [f"{path}-{number}" for number in numbers if number > 1]
    return [*found, path] if os.path.exists(path) else found


def choose_output(output: str, default: str, overwrite: bool = False) -> str:
    """Return a file or folder to write to: the one that was typed, or the default one, which is
    printed, and counts up if it exists, unless it may be overwritten.
    """
    if output:
        return output
    path, suffix = os.path.splitext(default)
    output = default if overwrite else count_up(path, suffix=suffix)
    print(f"Output: {output}", flush=True)
    return output


def last_checkpoint_in(folder: str) -> str:
    """Return the name in the file "last_checkpoint" of an output folder, or ""."""
    try:
        with open(os.path.join(folder, "last_checkpoint"), errors="replace") as f:
            return f.read().strip()
    except OSError:
        return ""


def check_image_output(path: str, overwrite: bool = True) -> None:
    """Make the folder of an image to write.

    Raises:
        UserError: for another format than those whose files can be marked as drawings, a folder
            that cannot be used, and a file that already exists, unless it is a drawing and
            ``overwrite`` is set.
    """
    refuse_folder(path)
    if os.path.exists(path) and not overwrite:
        raise UserError(f"{path} already exists; name another --output, or add --overwrite.")
    refuse_photograph(path)
    check_format(path)
    check_folder(os.path.dirname(path) or ".", "--output")


def check_format(path: str) -> None:
    """Raise UserError for a drawing of a format whose files cannot be marked as drawings."""
    if _find_format(path) not in DRAWN:
        raise UserError(f"No image can be written to {path}; its name must end in .png or .jpg.")


def refuse_photograph(path: str, videos: Collection[str] = ()) -> None:
    """Raise UserError for an image, or a video of one of some endings, that is not marked as a
    drawing of the program, which does not write over it.
    """
    is_there = os.path.isfile(path) and os.path.getsize(path)
    is_image = _find_format(path) in Image.SAVE or os.path.splitext(path)[1].lower() in videos
    if is_there and is_image and not is_drawing(path):
        raise UserError(
            f"{path} is not marked as drawn by tood, and is not written over; name another file."
        )


def _find_format(path: str) -> str:
    """Return Pillow's name of the format that the ending of a path stands for, or ""."""
    return Image.registered_extensions().get(os.path.splitext(path)[1].lower(), "")


@contextlib.contextmanager
def written_whole(path: str) -> Iterator[BinaryIO]:
    """Give a file to write to that becomes ``path`` at the end, or nothing after any error. If
    several processes write one path, as at the first use of a cache, each writes a whole file.

    Raises:
        UserError: if it cannot be written.
    """
    part = name_part(path)
    try:
        try:
            with open(part, "xb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())  # the machine may go down, too
            os.replace(part, path)
            _remove_left_parts(path)
        finally:
            if os.path.exists(part):
                os.remove(part)
    except (OSError, RuntimeError) as error:
        # PyTorch's writer raises another error when it is interrupted or the disk is full.
        causes = _causes(error)
        for cause in causes:
            if isinstance(cause, (KeyboardInterrupt, SystemExit)):
                raise cause from error
        folder = os.path.dirname(path) or "."
        no_space = [x for x in causes if getattr(x, "errno", None) in (errno.ENOSPC, errno.EDQUOT)]
        is_full = os.path.isdir(folder) and shutil.disk_usage(folder).free < 2**20
        if no_space or is_full:
            raise UserError(
                f"{path} cannot be written: no space left on {folder}; free some, or name another "
                "folder."
            ) from error
        reason = getattr(error, "strerror", None) or format_reason(error)
        raise UserError(
            f"{path} cannot be written ({reason}); check the folder, or name another one."
        ) from error


def name_part(path: str, suffix: str = "") -> str:
    """Return a temporary name in the folder of a file, which is used until it is complete.

    Args:
        suffix: ends the name.
    """
    folder, name = os.path.split(path)
    end = f".{uuid.uuid4().hex[:8]}.part{suffix}"
    if len(os.fsencode(name + end)) > MOST_BYTES:
        name = os.fsencode(name)[: MOST_BYTES // 2].decode(errors="ignore")
    return os.path.join(folder, name + end)


def _remove_left_parts(path: str) -> None:
    """Remove what processes that were killed more than a day ago have left of a file."""
    for part in glob.glob(glob.escape(path) + PART):
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            if time.time() - os.path.getmtime(part) > 86400:
                os.remove(part)


def _causes(error: Optional[BaseException]) -> List[BaseException]:
    """Return an error and those that led to it."""
    causes = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def write_atomically(content: Dict, path: str) -> None:
    """Save a checkpoint whole or not at all.

    Raises:
        UserError: if it cannot be written, or Detectron2 could not read it by its name.
    """
    if not path.endswith(".pth"):
        raise UserError(f"The name {path} must end in .pth for Detectron2 to read it.")
    with written_whole(path) as f:
        import torch

        torch.save(content, f)


def write_whole(path: str, content: bytes) -> None:
    """Write a file whole or not at all; raise UserError if it cannot be written."""
    with written_whole(path) as f:
        f.write(content)


def write_image(image: np.ndarray, path: str) -> None:
    """Write a drawing (H, W, 3) uint8, RGB, whole or not at all, marked as one. A link at ``path``
    is replaced, not followed.

    Raises:
        UserError: if it cannot be written.
    """
    format = _find_format(path)
    with written_whole(path) as f:
        Image.fromarray(image).save(f, format=format, **make_drawing_options(format))


def encode_image(image: np.ndarray, format: str, **options) -> bytes:
    """Return the content of an image file.

    Args:
        image: (H, W, 3) uint8, RGB.
        format, options: arguments of Pillow's ``Image.save``.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


def write_json(content, path: str) -> None:
    """Write JSON, with null for NaN and infinity; raise UserError if it cannot be written."""
    text = encode_json(content, indent=1)
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from error
    write_whole(path, text.encode())


def encode_json(content, **options) -> str:
    """Return JSON that any parser reads: NaN and infinity, which JSON does not have, become null.

    Args:
        content: plain values; also scalars and arrays of NumPy and PyTorch.
        options: arguments of ``json.dumps``.
    """
    try:
        return json.dumps(content, allow_nan=False, **options)
    except (TypeError, ValueError):
        return json.dumps(_to_json(content), allow_nan=False, **options)


def _to_json(content):
    if isinstance(content, dict):
        return {key: _to_json(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_to_json(value) for value in content]
    if hasattr(content, "tolist"):
        return _to_json(content.tolist())
    return None if isinstance(content, float) and not math.isfinite(content) else content
