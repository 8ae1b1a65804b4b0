"""Files of tensors, read without running code in them: looked at before they are read, and their
content before it is used.
"""

import hashlib
import io
import os
import pickle
import pickletools
import re
import reprlib
import zipfile
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Sequence, Set, Tuple

import numpy as np

from tood.utils.errors import UserError
from tood.utils.reading import open_regular

MAX_RECORDS = 100_000
MAX_CODE = 64 * 2**20  # bytes of compressed records together
CLASSIFIER = "head.cls_pred.weight"  # (K, ...) in a state dict
# Names around a state dict, which are not part of its entries' names.
_WRAPPERS = ("model", "state_dict", "model_state", "blobs")


def open_archive(f: BinaryIO, compressed: Sequence[str] = ()) -> zipfile.ZipFile:
    """Open a zip file of PyTorch, whose records are stored as they are.

    Args:
        compressed: folders, below the archive's root folder, whose records may be compressed.

    Raises:
        ValueError: if a record is compressed, two have one name, or they are larger than the file.
    """
    archive = zipfile.ZipFile(f)
    if _read_directory_offset(f, archive) != archive.start_dir:
        raise ValueError("its directory is not where it says")  # PyTorch would read another one
    records = archive.infolist()
    if len(records) > MAX_RECORDS:
        raise ValueError(f"it has more than {MAX_RECORDS:,} records")
    if len({x.filename.lower() for x in records}) < len(records):
        raise ValueError("two of its records have one name")
    packed = [x for x in records if x.compress_type != zipfile.ZIP_STORED]
    for record in packed:
        if not record.filename.partition("/")[2].startswith(tuple(compressed) or ("/",)):
            raise ValueError(f"its record {record.filename} is compressed")
    size = f.seek(0, 2)
    packed_size = sum(x.file_size for x in packed)
    if packed_size > MAX_CODE:
        raise ValueError("its compressed records are too large")
    if sum(x.file_size for x in records) - packed_size > size:
        raise ValueError("its records are larger than the file")
    return archive


def _read_directory_offset(f: BinaryIO, archive: zipfile.ZipFile) -> int:
    end = f.seek(-22 - len(archive.comment), 2)
    f.seek(end + 16)
    offset = int.from_bytes(f.read(4), "little")
    if offset == 2**32 - 1:  # a large archive
        f.seek(end - 12)
        f.seek(int.from_bytes(f.read(8), "little") + 48)
        offset = int.from_bytes(f.read(8), "little")
    return offset


def check_pickle(f: BinaryIO) -> None:
    """Check the operations of a pickle, up to its end, without executing them.

    Raises:
        pickle.UnpicklingError: if it calls a function that can make any number of bytes from a few,
            which PyTorch would allow.
    """
    texts: Set[str] = set()
    value: Any  # of the type that belongs to the operation
    for operation, value, _ in pickletools.genops(f):
        if operation.name == "PROTO" and value > pickle.HIGHEST_PROTOCOL:
            raise ValueError(f"its pickle has the protocol {value}")
        if operation.name == "GLOBAL" and value.split()[-1] in _BYTES:
            raise pickle.UnpicklingError(f"GLOBAL {value.replace(' ', '.')}")
        if operation.name == "STACK_GLOBAL" and texts & _BYTES:
            raise pickle.UnpicklingError(f"GLOBAL {min(texts & _BYTES)}")
        if isinstance(value, str):
            texts.add(value)


_BYTES = {"bytearray", "encode"}  # of builtins and _codecs


def check_tensors(content: Any, num_bytes: int) -> None:
    """Check all tensors and arrays in containers.

    Args:
        num_bytes: size of their file.

    Raises:
        ValueError: if a tensor, which the message names, contains NaN or infinity, also after a
            conversion to float32, or is not a plain tensor; or if they are much larger than their
            file.
    """
    total = 0
    for name, x in _iterate_leaves(content):
        values = _get_values(name, x)
        if values is None:
            continue
        is_array = isinstance(values, np.ndarray)
        total += values.nbytes if is_array else values.numel() * values.element_size()
        if total > 8 * num_bytes:  # the same values may have several names
            raise ValueError(f"its tensors, such as {name}, are larger than the file")
        if not _is_finite(values):
            raise ValueError(f"{name} contains NaN or infinity")


def _iterate_leaves(content: Any) -> Iterator[Tuple[str, Any]]:
    """Yield (name, value) of all that is in containers, each of which is entered once."""
    seen: Set[int] = set()
    stack: List[Tuple[str, Any]] = [("", content)]
    while stack:
        name, value = stack.pop()
        if isinstance(value, dict):
            items = list(value.items())
        elif isinstance(value, (list, tuple, set, frozenset)):
            items = list(enumerate(value))
        else:
            yield name or "an entry", value
            continue
        if id(value) not in seen:
            seen.add(id(value))
            prefix = "" if name in ("", *_WRAPPERS) else f"{name}."
            stack += [(f"{prefix}{key}", x) for key, x in reversed(items)]


def _get_values(name: str, x: Any) -> Any:
    """Return the values of a tensor or an array, each of those that are expanded once, and None for
    other objects.
    """
    if isinstance(x, np.ndarray):
        return np.asarray(x[tuple(slice(1 if stride == 0 else None) for stride in x.strides)])
    if not type(x).__module__.startswith("torch"):
        return None
    import torch

    if not isinstance(x, torch.Tensor):
        return None
    if x.layout != torch.strided or x.is_quantized or x.device.type != "cpu":
        raise ValueError(f"{name} is not a plain tensor")
    return x[tuple(slice(1 if stride == 0 else None) for stride in x.stride())]


def _is_finite(x: Any) -> bool:
    if isinstance(x, np.ndarray):
        with np.errstate(over="ignore"):
            return x.dtype.kind not in "fc" or bool(np.isfinite(x.astype(np.complex64)).all())
    if not x.is_floating_point() and not x.is_complex():
        return True
    x = x if x.is_complex() else x.float()
    # A finite sum is of finite numbers, and needs no memory; another one may be an overflow.
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def check_types(tensors: Dict[str, Any], expected: Dict[str, Any]) -> None:
    """Check that the tensors which a model is to load as floating-point numbers are such.

    Args:
        tensors, expected: state dicts of a file and of the model; names in one of them only are
            ignored.

    Raises:
        ValueError: if one is integer, boolean or complex; the message names the first.
    """
    for name, x in tensors.items():
        known = expected.get(name)
        if known is not None and known.is_floating_point() and not x.is_floating_point():
            raise ValueError(f"{name} is {x.dtype}, and must be of floating-point numbers")


def check_classes(content: Dict) -> None:
    """Check the names of classes in a checkpoint, which may have none.

    Raises:
        ValueError: if ``class_names`` is not a list of text, or its length is not that of the
            classifier.
    """
    names = content.get("class_names")
    if names is None:
        return
    try:
        "".join(names).encode()
    except (TypeError, ValueError):
        names = ""
    if isinstance(names, (list, tuple)):
        model = content.get("model")
        classifier = model.get(CLASSIFIER) if isinstance(model, dict) else None
        number = next(iter(getattr(classifier, "shape", ())), len(names))
        if not names or len(names) == number:
            return
        raise ValueError(f"class_names names {len(names)} classes, {CLASSIFIER} has {number}")
    raise ValueError(f"class_names is {reprlib.repr(content['class_names'])}, not a list of text")


def hash_tensors(tensors: Dict[str, Any]) -> str:
    """Return the SHA-256 of names, types, shapes and values of a state dict, in hexadecimal
    digits.
    """
    import torch

    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_tensors(path: str) -> Dict:
    """Read a file of tensors and plain values without running code in it. Its checksums must be
    right, if its format has them.

    Raises:
        UserError: if the file does not exist, is damaged or much smaller than what it would become,
            or contains NaN, infinity, wrong names of classes, or anything but plain values.
    """
    return _read_by(load_tensors, path)


def load_tensors(f: BinaryIO) -> object:
    """Return what ``torch.save`` has written, without running code; errors are of any kind."""
    start = f.read(4)
    if start == b"PK\3\4":
        archive = open_archive(f)
        if archive.testzip() is not None:  # PyTorch does not check the checksums
            raise ValueError("a checksum is wrong")
        for name in archive.namelist():
            if name.endswith(".pkl"):
                check_pickle(io.BytesIO(archive.read(name)))
    elif start[:1] == b"\x80":  # an old format of PyTorch: five pickles, then values
        f.seek(0)
        for _ in range(5):
            check_pickle(f)
    else:
        raise ValueError("it is not written by PyTorch")
    import torch  # here, because other files need no PyTorch

    f.seek(0)
    return torch.load(f, map_location="cpu", weights_only=True)


def read_pickle(path: str) -> Dict:
    """Read a file of NumPy arrays and plain values, as in Detectron2's model zoo, without running
    code in it.

    Raises:
        UserError: as :func:`read_tensors`.
    """
    return _read_by(lambda f: _ArrayUnpickler(f, encoding="latin1").load(), path)


def _read_by(load: Callable[[BinaryIO], object], path: str) -> Dict:
    if not os.path.exists(path):
        raise UserError(f"The checkpoint {path} does not exist; check its name.")
    with open_regular(path) as f:
        content = _load(load, f, path)
        num_bytes = os.fstat(f.fileno()).st_size
    if not isinstance(content, dict) or not content:
        raise UserError(f"The checkpoint {path} contains no state dict; name another file.")
    try:
        check_tensors(content, num_bytes)
        check_classes(content)
    except ValueError as error:
        raise UserError(
            f"The checkpoint {path} cannot be used: {error}; name another one."
        ) from error
    return content


def _load(load: Callable[[BinaryIO], object], f: BinaryIO, path: str) -> object:
    try:
        return load(f)
    except Exception as error:  # damaged files raise errors of any kind
        refused = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise UserError(
                f"The checkpoint {path} is refused: reading it would run code, because it needs "
                f"{refused[1]}; save its weights alone, with the program that wrote it."
            ) from error
        reason = f" ({error})" if type(error) is ValueError else ""
        raise UserError(
            f"The checkpoint {path} is damaged, or is not a checkpoint{reason}; get it again."
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        key = module.replace("numpy._core", "numpy.core"), name
        if key in _REPLACED:
            return _REPLACED[key]
        if key not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


def _make_empty(kind: object, shape: object, dtype: object) -> np.ndarray:
    """Return an array that gets its values, and the shape of these, afterwards."""
    return np.empty(0, np.int8)


def _encode(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"GLOBAL _codecs.encode of {encoding}")
    return text.encode(encoding)


_ARRAY_GLOBALS = {
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
}


# What makes arrays and bytes of a size that a few bytes name.
_REPLACED = {
    ("_codecs", "encode"): _encode,  # of the bytes of arrays, in old pickles
    ("numpy", "ndarray"): None,
    ("numpy.core.multiarray", "_reconstruct"): _make_empty,
}
