"""Exported files, looked at record by record before a runtime reads them.

``torch.export.load`` unpickles without limits, evaluates expressions as Python, imports modules and
resolves operators by any path below ``torch``. What is read here are records of tensors and a graph
of known operators; they are copied into a new archive, so that PyTorch sees nothing else.
"""

import io
import json
import logging
import re
import zipfile
from typing import Any, BinaryIO, Callable, Dict, Iterator, Tuple

from tood.deploy.module import METADATA_FILE, quiet
from tood.utils.logs import at_level
from tood.utils.reading import MiB, open_regular
from tood.utils.tensors import load_tensors, open_archive

MAX_JSON = 64 * MiB
MODEL, SAMPLE = "models/model.json", "data/sample_inputs/model.pt"
METADATA = f"extra/{METADATA_FILE}"
RECORDS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json|model\.pt)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json|model\.pt)"
    rf"|{re.escape(MODEL)}|{re.escape(SAMPLE)}|{re.escape(METADATA)}"
    r"|archive_format|archive_version|byteorder|version"
    r"|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
# What a graph may call. None of them reads or writes a file, or calls other functions than these;
# "higher_order" ones call graphs of the same file.
ATEN = """
__and__ __or__ _assert_scalar _assert_tensor_metadata _convolution
_native_batch_norm_legit_no_training _softmax _to_copy abs abs_ adaptive_avg_pool2d
adaptive_max_pool2d add add_ addmm alias all amax amin any arange argmax argmin argsort atan2
avg_pool2d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bmm broadcast_to cat ceil chunk
clamp clamp_ clamp_max clamp_min clone constant_pad_nd contiguous conv2d convolution copy copy_ cos
cumsum detach detach_ dim div div_ dropout dropout_ einsum elu empty empty_like eq erf exp exp_
expand expand_as expm1 fill fill_ flatten flip floor floor_ floor_divide full full_like gather ge
gelu gelu_ grid_sampler group_norm gt hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh
hardtanh_ im2col index index_fill index_put index_put_ index_select instance_norm isfinite isinf
isnan item layer_norm le leaky_relu leaky_relu_ lift_fresh_copy linalg_vector_norm linear linspace
log log1p log2 log_sigmoid log_softmax logical_and logical_not logical_or logical_xor lt masked_fill
masked_fill_ masked_select matmul max max_pool2d max_pool2d_with_indices maximum mean meshgrid min
minimum mish mish_ mm movedim mul mul_ nan_to_num narrow native_group_norm native_layer_norm ne neg
new_empty new_full new_ones new_zeros nonzero nonzero_numpy norm numel numpy_T one_hot ones
ones_like pad permute pixel_shuffle pow prelu prod promote_types reciprocal relu relu6 relu6_ relu_
remainder repeat repeat_interleave reshape result_type rms_norm roll round rsqrt rsub scalar_tensor
scaled_dot_product_attention scatter scatter_add scatter_reduce select sigmoid sigmoid_ sign silu
silu_ sin size slice softmax softplus sort split split_with_sizes sqrt square squeeze stack std sub
sub_ sum swapaxes sym_constrain_range sym_constrain_range_for_size sym_numel sym_size t
take_along_dim tan tanh tanh_ tile to topk transpose tril triu type_as unbind unflatten unfold
unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_nearest2d var view view_as where zeros
zeros_like
"""
OPERATORS = re.compile(
    rf"torch\.ops\.aten\.({'|'.join(ATEN.split())})\.[A-Za-z]\w*"
    r"|torch\.ops\.torchvision\.(nms|deform_conv2d|roi_align)\.[A-Za-z]\w*"
    r"|torch\.ops\.higher_order\.wrap_(with_autocast|with_set_grad_enabled)"
    r"|_operator\.(add|sub|mul|neg|floordiv|truediv|mod|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
    r"|torch\.sym_(not|int|float|max|min|ite|sum)|math\.(ceil|floor|trunc)"
)
# Functions of symbolic sizes, which PyTorch evaluates as Python.
SYMBOLIC = """
Symbol positive nonnegative negative integer True False true false Integer Rational Float Add Mul
Max Min Mod PythonMod FloorDiv CeilDiv CleanDiv IntTrueDiv FloatTrueDiv ToFloat CeilToInt
FloorToInt TruncToInt RoundToInt Where And Or Not Equality Unequality GreaterThan
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
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    buffer.seek(0)
    metadata = _parse(METADATA, records[METADATA])
    try:
        # It logs the traceback of an error that it then raises without a reason.
        with quiet(), at_level("torch.export", logging.CRITICAL):
            return torch.export.load(buffer), metadata
    except (KeyError, RuntimeError) as error:  # the former from versions before 2.9
        raise ValueError("its graph and its tensors are not a program") from error


def read_onnx(path: str) -> Tuple[bytes, Any]:
    """Return the content of an ONNX file, and what it is parsed to.

    Raises:
        UserError, ValueError: for a file that cannot be parsed, or that needs other files.
    """
    import onnx

    with open_regular(path) as f:
        content = f.read()
    model = onnx.load_model_from_string(content)
    for tensor in _iterate_tensors(model):
        if tensor.external_data or tensor.data_location:
            files = [x.value for x in tensor.external_data if x.key == "location"]
            raise ValueError(
                f"its tensor {tensor.name[:80]} is in another file, {(files or [''])[0][:80]!r}; "
                "a file of tood export contains all of its tensors"
            )
    return content, model


def _iterate_tensors(message: Any) -> Iterator[Any]:
    """Yield the tensors in a message of protobuf, at any depth."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if hasattr(value, "__len__") else [value]:
                yield from _iterate_tensors(part)


def _read_records(f: BinaryIO) -> Dict[str, bytes]:
    archive = open_archive(f)
    records = {}
    for record in archive.infolist():
        name = record.filename.partition("/")[2]
        if not RECORDS.fullmatch(name) or name in records:
            raise ValueError(f"its record {record.filename} is not one of a model")
        records[name] = _clean_record(name, archive.read(record))  # checks its checksum
    for name in (MODEL, METADATA):
        if name not in records:
            raise ValueError(f"it has no record {name}")
    _check_sizes(records)
    return {**records, SAMPLE: b""}


def _check_sizes(records: Dict[str, bytes]) -> None:
    """Raise ValueError for a tensor without values, which PyTorch would not initialize."""
    for kind in ("weights", "constants"):
        config = records.get(f"data/{kind}/model_{kind}_config.json", b'{"config": {}}')
        for entry in json.loads(config)["config"].values():
            name = f"data/{kind}/{entry['path_name']}"
            sizes = [size["as_int"] for size in entry["tensor_meta"]["sizes"]]
            if 0 not in sizes and not records.get(name):
                raise ValueError(f"its record {name} is empty")


def _clean_record(name: str, content: bytes) -> bytes:
    """Return what is read of a record; raise ValueError if it could run code."""
    if name.endswith(".pt"):
        return _write_again(name, content) if content else content
    if name == MODEL:
        program = _parse(name, content)
        _drop_notes(program)
        _check_texts(program)
        return json.dumps(program).encode()
    if name.endswith(".json") and name != METADATA:
        config = _parse(name, content)
        for entry in config["config"].values():
            if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
                raise ValueError(f"{name} names what is not a tensor, which could run code")
    return content


def _write_again(name: str, content: bytes) -> bytes:
    """Return a pickle of the same tensors, which PyTorch reads without its limits."""
    import torch

    try:
        tensors = load_tensors(io.BytesIO(content))
    except Exception as error:  # damaged records raise errors of any kind
        raise ValueError(f"its record {name} is a pickle that could run code") from error
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def _parse(name: str, content: bytes) -> Any:
    if len(content) > MAX_JSON:
        raise ValueError(f"its record {name} is too large")
    parsed = json.loads(content)
    if not isinstance(parsed, dict):
        raise ValueError(f"its record {name} is not an object")
    return parsed


def _drop_notes(program: Dict) -> None:
    """Remove what is not needed to run a graph, such as where its nodes come from."""
    if "guards_code" in program:  # in files of newer versions of PyTorch
        program["guards_code"] = []
    stack: list = [program]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if "metadata" in value:
                value["metadata"] = {}
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def _check_texts(program: Dict) -> None:
    """Raise ValueError for a graph that calls, evaluates, imports or names anything unknown: the
    names in it become Python code.
    """
    for key, text in _iterate_texts(program):
        if not _CHECKS.get(key, _is_name)(text):
            raise ValueError(f"its graph has the {key or 'key'} {text[:80]!r}, which is not known")


def _iterate_texts(content: Any) -> Iterator[Tuple[str, str]]:
    """Yield all texts in dicts and lists with the key that they belong to, and "" and all keys."""
    stack = [("", content)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            yield from (("", x) for x in value)
            stack += value.items()
        elif isinstance(value, list):
            stack += [(key, x) for x in value]
        elif isinstance(value, str):
            yield key, value


def _is_name(text: str) -> bool:
    unknown = text in ("as_custom_obj", "as_operator", "as_opaque")
    return not unknown and re.fullmatch(r"[\w.]*", text, re.ASCII) is not None


def _is_variable(text: str) -> bool:
    return re.fullmatch(r"\w*", text, re.ASCII) is not None


def _is_operator(text: str) -> bool:
    return OPERATORS.fullmatch(text) is not None


def _is_expression(value: str) -> bool:
    # A point belongs to a number, and a power may be too large to compute.
    if not re.fullmatch(r"[\w\s(),'=.<>+*/-]*", value, re.ASCII):
        return False
    if re.search(r"\.(?!\d)|\*\*|\d{20}", value):
        return False
    names = set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", value))
    return all(name in SYMBOLIC.split() or re.fullmatch(r"[suz]\w?\d+", name) for name in names)


def _is_tree(value: str) -> bool:
    """Return whether the text is a tree of plain containers, without anything to import."""
    try:
        tree = json.loads(value)
        contexts = [json.loads(x) for key, x in _iterate_texts(tree) if key == "context"]
    except ValueError:
        return False
    types = [x for key, x in _iterate_texts(tree) if key == "type"]
    names = [x for context in contexts for key, x in _iterate_texts(context)]
    return all(x in CONTAINERS for x in types) and all(map(_is_variable, names))


# Key -> whether its text is known; others are names with points.
_CHECKS: Dict[str, Callable[[str], bool]] = {
    "target": _is_operator,
    "name": _is_variable,
    "as_name": _is_variable,
    "expr_str": _is_expression,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
    "as_string": lambda text: True,  # an argument, quoted
    "torch_version": lambda text: True,
}
