"""Exported programs of PyTorch (``.pt2``), looked at record by record before PyTorch reads them.

``torch.export.load`` unpickles without limits, evaluates expressions as Python, imports modules and
resolves operators by any path below ``torch``. What is read here are records of tensors and a graph
of known operators; they are copied into a new archive, so that PyTorch sees nothing else.
"""

import io
import json
import re
import zipfile
from typing import Any, Callable, Dict, Iterator, Tuple

from tood.deploy.module import METADATA_FILE
from tood.utils.reading import MiB, open_regular
from tood.utils.tensors import open_archive

MAX_JSON = 64 * MiB
MODEL, SAMPLE = "models/model.json", "data/sample_inputs/model.pt"
RECORDS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    rf"|{re.escape(MODEL)}|{re.escape(SAMPLE)}|extra/{re.escape(METADATA_FILE)}"
    r"|archive_format|archive_version|byteorder|version"
    r"|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
# What a graph may call. None of them reads or writes a file, or calls other functions than these;
# "higher_order" ones call graphs of the same file.
ATEN = """
__and__ __or__ _assert_scalar _assert_tensor_metadata _native_batch_norm_legit_no_training
_softmax _to_copy abs abs_ adaptive_avg_pool2d add add_ alias all amax amin any arange argmax
argmin argsort atan2 avg_pool2d batch_norm bitwise_and bitwise_not bitwise_or bmm broadcast_to cat
ceil chunk clamp clamp_ clamp_max clamp_min clone constant_pad_nd contiguous conv2d convolution copy
copy_ cos cumsum detach detach_ div div_ dropout dropout_ einsum elu empty empty_like eq exp exp_
expand expand_as expm1 fill fill_ flatten flip floor floor_ floor_divide full full_like gather ge
gelu gelu_ group_norm gt hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_ index
index_fill index_put index_put_ index_select instance_norm isfinite isinf isnan item layer_norm le
leaky_relu leaky_relu_ lift_fresh_copy linalg_vector_norm linear log log1p log_sigmoid log_softmax
logical_and logical_not logical_or logical_xor lt masked_fill masked_fill_ masked_select matmul max
max_pool2d maximum mean meshgrid min minimum mish mish_ mm movedim mul mul_ nan_to_num narrow ne neg
new_empty new_full new_ones new_zeros nonzero nonzero_numpy norm numpy_T one_hot ones ones_like pad
permute pixel_shuffle pow prelu prod reciprocal relu relu6 relu6_ relu_ remainder repeat
repeat_interleave reshape roll round rsqrt rsub scaled_dot_product_attention scatter scatter_add
select sigmoid sigmoid_ sign silu silu_ sin slice softmax softplus sort split split_with_sizes sqrt
squeeze stack std sub sub_ sum sym_constrain_range sym_constrain_range_for_size sym_numel
sym_size t tanh tanh_ tile to topk transpose tril triu type_as unbind unflatten unsqueeze
upsample_bilinear2d upsample_nearest2d var view view_as where zeros zeros_like
"""
OPERATORS = re.compile(
    rf"torch\.ops\.aten\.({'|'.join(ATEN.split())})\.\w+"
    r"|torch\.ops\.torchvision\.(nms|deform_conv2d|roi_align)\.\w+"
    r"|torch\.ops\.higher_order\.wrap_(with_autocast|with_set_grad_enabled)"
    r"|_operator\.(add|sub|mul|neg|floordiv|truediv|mod|pow|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
    r"|torch\.sym_(not|int|float|max|min|ite|sum)|math\.(ceil|floor|trunc)"
)
# Functions of symbolic sizes, which PyTorch evaluates as Python.
SYMBOLIC = """
Symbol positive nonnegative negative integer True False true false Integer Rational Float Add Mul
Max Min Mod PythonMod FloorDiv CeilDiv CleanDiv IntTrueDiv FloatTrueDiv Pow PowByNatural ToFloat
CeilToInt FloorToInt TruncToInt RoundToInt Where And Or Not Equality Unequality GreaterThan
StrictGreaterThan LessThan StrictLessThan Eq Ne Ge Gt Le Lt BooleanTrue BooleanFalse
"""
CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def read_program(path: str) -> Tuple[Any, Dict]:
    """Return an exported program and the metadata beside it.

    Raises:
        UserError, ValueError: for a file that contains anything but tensors and a graph of known
            operators; and PyTorch's own errors.
    """
    import torch

    with open_regular(path) as f:
        records = _read_records(f)
    for name, content in records.items():
        if name.endswith(".json") and name != MODEL and not name.startswith("extra/"):
            _check_payloads(name, _parse(name, content))
    _check_model(_parse(MODEL, records.get(MODEL, b"")))
    metadata = _parse(METADATA_FILE, records.get(f"extra/{METADATA_FILE}", b""))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    buffer.seek(0)
    return torch.export.load(buffer), metadata


def _read_records(f) -> Dict[str, bytes]:
    archive = open_archive(f)
    records = {}
    for record in archive.infolist():
        name = record.filename.partition("/")[2]
        if not RECORDS.fullmatch(name):
            raise ValueError(f"its record {record.filename} is not one of a model")
        if name == SAMPLE and record.file_size:
            raise ValueError(f"its record {name} is a pickle, which could run code")
        if name in records:
            raise ValueError(f"it has two records {name}")
        records[name] = archive.read(record)  # checks its checksum
    return records


def _parse(name: str, content: bytes) -> Any:
    if len(content) > MAX_JSON:
        raise ValueError(f"its record {name} is too large")
    return json.loads(content)


def _check_payloads(name: str, content: Any) -> None:
    """Raise ValueError unless all tensors are stored as their bytes."""
    for entry in content["config"].values():
        if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise ValueError(f"{name} needs a pickle, which could run code")


def _check_model(content: Any) -> None:
    """Raise ValueError for a graph that calls, evaluates or imports anything unknown."""
    for key, value in _iterate_items(content):
        check = _CHECKS.get(key)
        if check is not None and not check(value):
            raise ValueError(f"its graph has the {key} {str(value)[:80]!r}, which is not known")
        if key in ("as_custom_obj", "as_operator", "as_opaque"):
            raise ValueError(f"its graph has an argument of the kind {key}")


def _iterate_items(content: Any) -> Iterator[Tuple[str, Any]]:
    stack = [content]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield from value.items()
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def _is_operator(value: Any) -> bool:
    return isinstance(value, str) and OPERATORS.fullmatch(value) is not None


def _is_expression(value: Any) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"[\w\s(),'=.<>+*/-]*", value, re.ASCII):
        return False
    # A point belongs to a number, and a power is a small one.
    if re.search(r"\.(?!\d)|\*\*\s*(?!\d\b)", value) or re.search(r"\d{20}", value):
        return False
    names = set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", value))
    return all(name in SYMBOLIC.split() or re.fullmatch(r"[suz]\w?\d+", name) for name in names)


def _is_tree(value: Any) -> bool:
    """Return whether the text is a tree of plain containers, without anything to import."""
    try:
        items = list(_iterate_items(json.loads(value)))
        contexts = [json.loads(x) if isinstance(x, str) else x for k, x in items if k == "context"]
    except (TypeError, ValueError):
        return False
    types = [x for k, x in items if k == "type"]
    return all(x is None or x in CONTAINERS for x in types) and all(
        x is None or (isinstance(x, list) and all(isinstance(y, str) for y in x)) for x in contexts
    )


_CHECKS: Dict[str, Callable[[Any], bool]] = {
    "target": _is_operator,
    "expr_str": _is_expression,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
}
