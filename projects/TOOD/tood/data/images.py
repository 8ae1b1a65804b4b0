"""Images in files: read for the network, and checked quickly before a long run."""

import contextlib
import functools
import os
import re
import sys
from typing import Any, BinaryIO, Callable, Iterable, Iterator, List, Tuple, Union

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from tood.utils.errors import UserError, format_reason
from tood.utils.folders import is_drawing
from tood.utils.reading import open_at_once, parse_number

with contextlib.suppress(ImportError):
    import pillow_heif  # an extra: photographs of telephones

    pillow_heif.register_heif_opener()
HEIF = (".heic", ".heif")

# Errors of reading files that are broken, empty, too large, or without a size.
IMAGE_ERRORS = (OSError, ValueError)
# An environment variable, because loaders are other processes.
LIMIT_VARIABLE = "TOOD_MAX_PIXELS"
PIXELS_REMEDY = f"cut them into pieces, or set {LIMIT_VARIABLE} in the environment to more"
# The endings of the images that Pillow can read; it also registers documents, films and arrays.
IMAGE_SUFFIXES = frozenset(Image.registered_extensions()) - frozenset(
    (".pdf", ".eps", ".ps", ".h5", ".hdf", ".mpg", ".mpeg", ".grib", ".bufr", ".emf", ".wmf")
)
# How the formats end that say so: without it, something is missing.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_PAGED = ("TIFF", "GIF", "WEBP")
PAGED_SUFFIXES = (".tif", ".tiff", ".gif", ".webp")
EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # tags of the size as stored
_TURNED = (5, 6, 7, 8)  # the orientations that change width and height


def images_in(folder: str) -> List[str]:
    """Return the sorted paths of the files in a folder whose names are those of images, without
    the drawings that the program wrote.
    """
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    images = [x for x in names if os.path.splitext(x)[1].lower() in IMAGE_SUFFIXES]
    paths = [os.path.join(folder, name) for name in images]
    return [path for path in paths if not is_drawing(path)]


class TooManyPixels(ValueError):
    """An image that takes gigabytes of memory, by accident or on purpose."""


@contextlib.contextmanager
def opened(path: str) -> Iterator[Tuple[BinaryIO, ImageFile.ImageFile]]:
    """Open a file, and its image by Pillow.

    Raises:
        TooManyPixels: beyond Pillow's limit, 179 million, or ``TOOD_MAX_PIXELS``.
        one of IMAGE_ERRORS: for a file that is broken, also while it is decoded.
    """
    typed = os.environ.get(LIMIT_VARIABLE, "")
    if typed:
        Image.MAX_IMAGE_PIXELS = _read_limit(typed) // 2  # twice that is an error
    try:
        with _open(path) as f, Image.open(f) as image:
            yield f, image
    except Image.DecompressionBombError as error:
        pixels, limit = (int(n) / 1e6 for n in re.findall(r"\d+", str(error))[:2])
        raise TooManyPixels(
            f"{pixels:.0f} million pixels are more than the limit of {limit:.0f} million; "
            f"{PIXELS_REMEDY}"
        ) from error
    except IMAGE_ERRORS:
        raise
    except Exception as error:  # decoders raise errors of any kind
        raise ValueError(format_reason(error)) from error


def _read_limit(text: str) -> int:
    """Return a number of pixels, written as 500000000, 500_000_000 or 5e8."""
    try:
        return int(parse_number(text.replace("_", ""), 1, sys.maxsize))
    except ValueError:
        raise UserError(f"{LIMIT_VARIABLE} is {text!r}; it must be a number of pixels.") from None


def _open(path: str) -> BinaryIO:
    if "://" not in path:
        return open_at_once(path)
    # Here, because a check of data needs no PyTorch, which takes seconds to import.
    from detectron2.utils.file_io import PathManager

    return PathManager.open(path, "rb")


def read_image(path: str, format: str = "RGB", bit_depth: int = 16) -> np.ndarray:
    """Read an image as Detectron2's ``read_image``, at any depth: of 16 bits, eight are kept,
    whereas Pillow would clip everything above 255.

    Args:
        path: local, or anything that Detectron2's PathManager knows.
        format: "RGB" or "BGR".
        bit_depth: bits that pixels of more than 8 bits use (``INPUT.BIT_DEPTH``).

    Returns:
        (H, W, 3) uint8, upright.

    Raises:
        one of IMAGE_ERRORS: for a file that is not an image, or not a whole one.
    """
    with opened(path) as (_, image):
        return decode_image(image, format, bit_depth)


def decode_image(image: Image.Image, format: str = "RGB", bit_depth: int = 16) -> np.ndarray:
    """Return the pixels of an image that Pillow has opened, as :func:`read_image` does."""
    if image.mode[0] not in "IF":  # integers and floats, deeper than a byte
        from detectron2.data.detection_utils import convert_PIL_to_numpy

        return convert_PIL_to_numpy(ImageOps.exif_transpose(image), format)
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers; save it with 8 or 16 bits")
    deep = np.asarray(ImageOps.exif_transpose(image))
    if deep.max(initial=0) > 65535 or deep.min(initial=0) < 0:
        raise ValueError("its pixels have more than 16 bits; save it with 8 or 16")
    shallow = np.minimum(deep // 2 ** (bit_depth - 8), 255).astype(np.uint8)
    return np.repeat(shallow[:, :, None], 3, axis=2)


def read_bgr(path: Union[str, "os.PathLike[str]"], bit_depth: int = 16) -> np.ndarray:
    """Read (H, W, 3) uint8 in BGR; a UserError names a file that cannot be read."""
    return read_by(read_image, path, "BGR", bit_depth)


def read_by(read: Callable, path: Union[str, "os.PathLike[str]"], format: str, bit_depth: int):
    """Call a function that reads an image as :func:`read_image` does; a UserError names a file that
    cannot be read.
    """
    path = os.fspath(path)
    try:
        return read(path, format, bit_depth)
    except Exception as error:  # of Pillow's readers, each its own
        if path.lower().endswith(HEIF) and HEIF[0] not in IMAGE_SUFFIXES:
            raise UserError(
                f"The image {path} is in HEIC, which needs another package: pip install "
                "pillow-heif, or save it as JPEG."
            ) from error
        raise UserError(f"The image {path} cannot be read ({format_reason(error)}).") from error


def read_pixels(image: Union[str, "os.PathLike[str]", np.ndarray], bit_depth: int) -> np.ndarray:
    """Return the pixels (H, W, 3) uint8, in BGR, of a file or of an array of this kind.

    Raises:
        UserError: for a file that cannot be read, or another array.
    """
    path = find_path(image)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise UserError(
                f"An image must be an array (H, W, 3) of uint8, in BGR; this one has the shape "
                f"{image.shape} and the type {image.dtype}."
            )
        return image
    return read_bgr(path, bit_depth)


def is_one(images: object) -> bool:
    """Return whether something is an image, not several: a path, an array, or of another kind."""
    is_image = isinstance(images, (str, bytes, os.PathLike)) or hasattr(images, "dtype")
    return is_image or not isinstance(images, Iterable)


def list_given(images: Any) -> List:
    """Return the images that an argument is, one or more."""
    return [images] if is_one(images) else list(images)


def find_path(image: object) -> str:
    """Return the path of an image, "" for an array; raise UserError for anything else."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if not isinstance(image, np.ndarray):
        raise UserError(
            "An image must be a path or an array (H, W, 3) of uint8, in BGR; this one is of the "
            f"type {type(image).__name__}."
        )
    return ""


def probe_image(path: str) -> Tuple[int, int]:
    """Check an image without decoding it, unless its end is not as expected. A file that did not
    change is opened once per process.

    Returns:
        width and height in pixels, upright (except for a PNG that says so after its pixels).

    Raises:
        one of IMAGE_ERRORS.
    """
    return _probe_once(path)[:2]


def probe_depth(path: str) -> int:
    """Return the bits that the pixels of an image use: 8, unless the file has more."""
    return _probe_once(path)[2]


def probe_pages(path: str) -> int:
    """Return the number of pages or frames of a file, the first of which is its image."""
    return _probe_once(path)[3]


def _probe_once(path: str) -> Tuple[int, int, int, int]:
    if "://" in path:
        return _probe(path, 0, 0)
    status = os.stat(path)
    return _probe(os.path.realpath(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1 << 20)
def _probe(path: str, mtime_ns: int, num_bytes: int) -> Tuple[int, int, int, int]:
    with opened(path) as (f, image):
        width, height = image.size
        if isinstance(image, TiffImageFile):  # some versions of Pillow turn its size, others do not
            width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
        # Not image.getexif(), which decodes a PNG, to find tags that hardly any has at its end.
        if Image.Image.getexif(image).get(EXIF_ORIENTATION) in _TURNED:
            width, height = height, width
        end = _ENDS.get(image.format or "")
        f.seek(-min(f.seek(0, 2), 64), 2)
        if end is None or end not in f.read():
            f.seek(0)
            image.load()  # some files are whole, with further bytes after them
        depth = 8
        if image.mode.startswith("I"):
            depth = max(int(np.asarray(image).max(initial=0)).bit_length(), 8)
        pages = 1
        # Not of a JPEG with previews or a map of depth (MPO), as telephones write them.
        if image.format in _PAGED:
            with contextlib.suppress(Exception):  # the first one is whole
                pages = int(getattr(image, "n_frames", 1))
    return width, height, depth, pages
