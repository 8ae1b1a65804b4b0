"""Command lines of programs, and paths that functions take."""

import argparse
import functools
import inspect
import math
import os
import re
import shlex
import shutil
import sys
from numbers import Integral, Real
from typing import (
    Any,
    Callable,
    Dict,
    List,
    Optional,
    Sequence,
    Tuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from tood.utils.errors import UserError
from tood.utils.files import without_empty_folders
from tood.utils.signals import is_resumable

# Of a config: not every name in capitals with a dot, as IMG_1234.JPG.
KEYS = re.compile(
    r"(?:MODEL|SOLVER|INPUT|TEST|DATASETS|DATALOADER|GLOBAL)(?:\.[A-Z0-9_]+)+"
    "|OUTPUT_DIR|SEED|VIS_PERIOD|VERSION|CUDNN_BENCHMARK|FLOAT32_PRECISION"
)


def make_parser(docstring: str) -> argparse.ArgumentParser:
    """Return a parser that describes a program by its docstring: the text before the first "::"
    and, after the list of arguments, the examples behind it as they are.
    """
    description, _, epilog = docstring.partition("::")
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=formatter
    )


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Optional[Sequence[str]] = None
) -> argparse.Namespace:
    """Parse a command line. "~" at the start of a path is the home folder, even if no shell
    expands it.

    Raises:
        UserError: for a flag among the overrides of the config, which would swallow it.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser.allow_abbrev = False  # a flag that is not known may begin like another
    args = parser.parse_args([expand_home(str(x)) for x in argv])
    _refuse_flags(getattr(args, "opts", None) or ())
    return args


def split_overrides(
    argv: Optional[Sequence[str]] = None, flags: Sequence[str] = ()
) -> Tuple[List[str], List[str]]:
    """Split a command line before its first KEY VALUE option: a key of Detectron2's groups, also a
    misspelt one, or one of its keys without a group.

    Args:
        flags: those that take a value, which may be called like a key.

    Raises:
        UserError: for a flag among the options.
    """
    argv = [str(x) for x in (sys.argv[1:] if argv is None else argv)]
    is_key = [KEYS.fullmatch(x) and before not in flags for x, before in zip(argv, ("", *argv))]
    first = is_key.index(next(filter(None, is_key))) if any(is_key) else len(argv)
    _refuse_flags(argv[first:])
    return argv[:first], [expand_home(x) for x in argv[first:]]


def make_continue_command(argv: Sequence[str]) -> str:
    """Return the command of this process, quoted for a shell, with --resume if that continues it.

    Args:
        argv: the name of its command, if it has several, and its arguments.
    """
    flags = ["--resume"] if is_resumable() and "--resume" not in argv else []
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        return " and ".join(["the same command", *flags])  # torchrun's is not known here
    script, typed = sys.argv[0], getattr(sys, "orig_argv", [])  # since Python 3.10
    if shutil.which(os.path.basename(script)) == os.path.abspath(script):
        program = [os.path.basename(script)]
    elif len(typed) > len(sys.argv):
        program = typed[: len(typed) - len(sys.argv) + 1]  # "python -m tood"
    else:
        is_package = os.path.basename(script) == "__main__.py"
        program = [sys.executable, *(("-m", "tood") if is_package else (script,))]
    at = 0 if argv[:1] and argv[0].startswith("-") else 1
    return shlex.join([*program, *argv[:at], *flags, *argv[at:]])


def _refuse_flags(overrides: Sequence[str]) -> None:
    for text in overrides:
        if re.match(r"--[a-z]", text):
            raise UserError(
                f"{text} stands among the KEY VALUE options; flags go before KEY VALUE options."
            )


def protect_numbers(word: str) -> str:
    """Return a list of numbers that begins with a minus, as a box "-1,5,10,10", with a space in
    front, so that argparse does not take it for a flag.
    """
    return f" {word}" if re.match("-[^-,]+,", word) else word


def expand_home(text: str) -> str:
    """Replace "~" at the start of a path: at the start of the text, or after ":", "," or "="."""
    home = os.path.expanduser("~").replace("\\", r"\\")
    return re.sub(r"""(^|[:=,'"([])~(?=/|$)""", rf"\g<1>{home}", text)


def accept_paths(*names: str) -> Callable:
    """Check the arguments of a function by the annotations of its parameters, and accept what they
    do not name: ``Path`` objects, lists of paths, and "~" at their start; a dict as "options". The
    function leaves no empty folder after an error.

    Args:
        names: parameters that are paths, which the function gets as text.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args, **kwargs):
            bound, kinds = signature.bind(*args, **kwargs), get_type_hints(function)
            for name in {*bound.arguments} & {*kinds} - {*PARSED}:
                value = bound.arguments[name]
                if name in names:
                    value = _read_path(value)
                elif name in OPTIONS:
                    value = read_options(name, value)
                _check_kind(name, value, kinds[name], {str: "a path"} if name in names else {})
                if name in names and not value and _is_required(signature.parameters[name]):
                    raise UserError(f"{name} is {value!r}; name a path.")
                bound.arguments[name] = value
            with without_empty_folders():
                return function(*bound.args, **bound.kwargs)

        return call

    return decorate


OPTIONS = ("options", "opts")  # KEY, VALUE, ...
PARSED = ("score_threshold", "box")  # by their functions, which accept text as well
_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    type(None): "None",
}


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def _read_path(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_read_path(x) for x in value]
    return expand_home(os.fspath(value)) if isinstance(value, (str, os.PathLike)) else value


def read_options(name: str, options: Any) -> List[str]:
    """Return keys and values in turn, as text.

    Args:
        name: name of the argument, for errors.
    """
    if isinstance(options, dict):
        options = [x for item in options.items() for x in item]
    is_list = isinstance(options, (list, tuple)) and len(options) % 2 == 0
    if not is_list or not all(isinstance(key, str) for key in options[::2]):
        raise UserError(
            f"{name} is {options!r:.80}; it must be keys and values in turn, as "
            '["SOLVER.MAX_ITER", 800], or a dict.'
        )
    return [str(x) for x in options]


def _check_kind(name: str, value: Any, kind: Any, texts: Dict[type, str]) -> None:
    """Raise UserError for a value that is not of an annotated kind.

    Args:
        texts: custom words for some kinds.
    """
    kinds = get_args(kind) if get_origin(kind) is Union else (kind,)
    if any(_fits(value, x) for x in kinds):
        return
    texts = {**_KINDS, **texts}
    words = [
        f"a list, each {texts[get_args(x)[0]]}" if get_args(x) else texts.get(x) or x.__name__
        for x in kinds
    ]
    raise UserError(f"{name} is {value!r:.80}; it must be {' or '.join(words)}.")


def _fits(value: Any, kind: Any) -> bool:
    if get_args(kind):  # of Sequence
        is_list = isinstance(value, (list, tuple)) or hasattr(value, "tolist")
        return is_list and all(_fits(x, get_args(kind)[0]) for x in value)
    if kind in (int, float):
        is_number = isinstance(value, Integral if kind is int else Real)
        return is_number and not isinstance(value, bool) and math.isfinite(value)
    if kind is str:
        return isinstance(value, str) and "\0" not in value
    return isinstance(value, kind)
