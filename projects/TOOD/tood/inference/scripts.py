"""TorchScript files, whose code is looked at before PyTorch compiles it.

Any code in such a file can call any operator of PyTorch, also those that read and write files. What
``torch.jit.trace`` writes are statements one after the other that call operators and submodules.
"""

import ast
import io
import re
import tokenize
import zipfile
from typing import Any, Tuple

from tood.deploy.module import METADATA_FILE, quiet
from tood.inference.programs import ATEN
from tood.utils.reading import open_regular
from tood.utils.tensors import open_archive

RECORDS = re.compile(
    r"code/[\w/]+\.py(\.debug_pkl)?|(data|constants|traced_inputs)(\.pkl|/\d+)"
    rf"|extra/{re.escape(METADATA_FILE)}|version|byteorder"
    r"|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
NODES = (
    *(ast.Module, ast.ClassDef, ast.FunctionDef, ast.arguments, ast.arg, ast.Return),
    *(ast.Assign, ast.AnnAssign, ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.keyword),
    *(ast.Constant, ast.List, ast.Tuple, ast.UnaryOp, ast.USub, ast.Load, ast.Store),
    ast.Index,  # of Python 3.8
)
CASTS = ("int", "float", "bool", "annotate", "getattr", "unchecked_cast")
OPERATORS = re.compile(
    rf"torch\.({'|'.join(ATEN.split())}|device)"
    r"|ops\.torchvision\.(nms|deform_conv2d|roi_align)|ops\.prim\.(NumToTensor|min|max)"
)


def read_torchscript(path: str) -> Tuple[Any, str]:
    """Return a TorchScript module and the text of the metadata beside it.

    Raises:
        UserError, ValueError: for a file that is larger than it looks, or whose code calls anything
            but known operators; and PyTorch's own errors.
    """
    import torch

    with open_regular(path) as f:
        _check_records(open_archive(f, ["code/"]))
        f.seek(0)
        extra = {METADATA_FILE: ""}
        with quiet():  # that all of TorchScript is deprecated
            module = torch.jit.load(f, map_location="cpu", _extra_files=extra)
    return module, extra[METADATA_FILE]


def _check_records(archive: zipfile.ZipFile) -> None:
    if archive.testzip() is not None:
        raise ValueError("a checksum is wrong")
    for record in archive.namelist():
        name = record.partition("/")[2]
        if not RECORDS.fullmatch(name):
            raise ValueError(f"its record {record} is not one of a traced model")
        if name.endswith(".py"):
            check_code(archive.read(record).decode())


def check_code(text: str) -> None:
    """Raise ValueError for code that TorchScript would run when it is read, or that calls anything
    but known operators and methods of the same file.
    """
    # Plain characters, so that TorchScript reads the same as Python.
    if not re.fullmatch(r"[ \n!-~]*", text) or re.search(r"[\\#]|\'\'\'|\"\"\"", text):
        raise ValueError("its code is not what PyTorch writes")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.STRING and token.string[0] not in "'\"":
            raise ValueError(f"its code has the string {token.string[:80]}")
    tree = ast.parse(text)
    functions = {id(x.func) for x in ast.walk(tree) if isinstance(x, ast.Call)}
    for node in ast.walk(tree):
        if not _is_known(node, id(node) in functions):
            line = getattr(node, "lineno", 0)
            shown = ast.unparse(node)[:80] if line else type(node).__name__
            raise ValueError(f"its code has {shown!r}, which is not known")


def _is_known(node: ast.AST, is_called: bool) -> bool:
    if isinstance(node, ast.FunctionDef):  # not __setstate__, which is called by reading
        return not node.decorator_list and re.fullmatch(r"forward\d*", node.name) is not None
    if isinstance(node, ast.ClassDef):
        return [ast.unparse(x) for x in node.bases] == ["Module"]
    if isinstance(node, ast.Name):
        is_read = isinstance(node.ctx, ast.Load)
        if is_called or node.id in CASTS:  # also annotations, as int
            return is_read and node.id in CASTS
        return is_read or node.id not in ("torch", "ops")
    if isinstance(node, ast.Attribute):
        text = ast.unparse(node)
        is_method = re.fullmatch(r"forward\d*", node.attr) is not None
        if is_called:
            return is_method or OPERATORS.fullmatch(text) is not None
        return not re.match(r"(torch|ops)\b", text) or text in ("ops.prim", "ops.torchvision")
    return isinstance(node, NODES) and not is_called
