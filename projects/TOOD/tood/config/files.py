"""YAML files, each read once and without running anything that is in them."""

import copy
import itertools
import os
import re
from typing import Any, Dict, FrozenSet, NamedTuple, Set, Tuple

import detectron2
import yaml

from tood.config.check import known_keys
from tood.config.zoo import CONFIGS
from tood.utils.errors import UserError, format_reason

# Its own configs may contain a computed list (Base-RetinaNet.yaml), and are as good as its code.
DETECTRON2_CONFIGS = os.path.join(os.path.dirname(detectron2.__file__), "model_zoo", "configs")
BASE = "Base-TOOD.yaml"


class ConfigFile(NamedTuple):
    """A config file that has been read: what follows from it opens no file."""

    path: str
    content: Dict  # merged with that of its bases
    typed: FrozenSet[str]  # keys with dots that any file other than BASE sets


def read_config_file(path: str) -> ConfigFile:
    """Read a config and those that its ``_BASE_`` names, each once.

    Args:
        path: "" is an empty config.

    Raises:
        UserError: if a file does not exist, is not YAML, or would run code.
    """
    if not path:
        return ConfigFile("", {}, frozenset())
    if path.endswith(".py"):
        raise UserError(
            f"{path} is a config in Python, which Detectron2's lazyconfig_train_net.py takes "
            "(docs/training.md); name a .yaml config."
        )
    if not os.path.isfile(path):
        raise UserError(f"The config file {path} does not exist; name another one.")
    typed: Set[str] = set()
    content = _read_with_base(path, typed)
    return ConfigFile(path, content, frozenset(typed))


def _read_with_base(path: str, typed: Set[str], before: Tuple[str, ...] = ()) -> Dict:
    """Return the content of a config, merged into those that its ``_BASE_`` names; ``before`` are
    the real paths of the files that led to it. Keys of all files but ``BASE`` are added to
    ``typed``.
    """
    real = os.path.realpath(path)
    if real in before:
        raise UserError(f"The config file {path} has itself as _BASE_; name another file there.")
    content = _read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"The config file {path} does not contain keys and values; correct it.")
    bases = content.pop("_BASE_", None) or []
    merged: Dict = {}
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str):
            raise UserError(f"_BASE_ in {path} is {base!r}; it must be the name of a file.")
        _merge(_read_with_base(_find_base(path, base), typed, (*before, real)), merged)
    _merge(content, merged)
    if os.path.basename(path) != BASE:
        typed.update(known_keys(content))
    return merged


def _find_base(path: str, base: str) -> str:
    """Return the path of a config's base: relative to the config, or else of this project."""
    file = os.path.join(os.path.dirname(path), os.path.expanduser(base))
    if not os.path.isfile(file) and os.path.basename(base) == base:
        ours = str(CONFIGS / base)
        file = ours if os.path.isfile(ours) else file
    if not os.path.isfile(file):
        raise UserError(f"The config file {path} needs {file} (_BASE_), which does not exist.")
    return file


def override_config_file(
    base: ConfigFile, path: str, options: Dict[str, object]
) -> Tuple[ConfigFile, str]:
    """Return a config that differs from another one by some values, and the text of its file. Its
    ``_BASE_`` names one of this project's configs, which any installation has; of another file, it
    contains the values, so that it can be moved to another machine.

    Args:
        path: of the new file, which is not written here.
        options: values by their keys with dots.
    """
    nested = _nest(options)
    content = copy.deepcopy(base.content)
    _merge(nested, content)
    is_ours = os.path.realpath(os.path.dirname(base.path)) == os.path.realpath(CONFIGS)
    written = {"_BASE_": os.path.basename(base.path), **nested} if is_ours else content
    return ConfigFile(path, content, base.typed | set(options)), _to_text(written)


def change_config_file(path: str, options: Dict[str, object]) -> str:
    """Return the text of a config file with other values, by their keys with dots. Comments at its
    start remain.
    """
    with open(path, encoding="utf-8") as f:
        head = "".join(itertools.takewhile(lambda line: line.startswith("#"), f))
    content = _read_yaml(path)
    _merge(_nest(options), content)
    return head + _to_text(content)


def _nest(options: Dict[str, object]) -> Dict:
    """Return values by their keys with dots as the content of a config."""
    nested: Dict = {}
    for key, value in options.items():
        *steps, last = key.split(".")
        place = nested
        for step in steps:
            place = place.setdefault(step, {})
        place[last] = _as_lists(value)
    return nested


def _to_text(content: Dict) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _as_lists(value: object) -> object:
    return [_as_lists(x) for x in value] if isinstance(value, (list, tuple)) else value


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node))
)


def _read_yaml(path: str) -> Any:
    is_trusted = os.path.realpath(path).startswith(os.path.realpath(DETECTRON2_CONFIGS) + os.sep)
    try:
        with open(path, encoding="utf-8-sig") as f:
            return yaml.load(f, Loader=yaml.UnsafeLoader if is_trusted else _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        code = re.search(r"'tag:yaml.org,2002:(python/.*)'", getattr(error, "problem", None) or "")
        if code:
            raise UserError(
                f"The config file {path} is refused: reading it would run code, because it needs "
                f"{code[1]}; write plain values."
            ) from error
        reason = getattr(error, "strerror", None) or format_reason(error)
        raise UserError(
            f"The config file {path} cannot be read ({reason}); correct it, or name another one."
        ) from error


def _merge(source: Dict, target: Dict) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(value, target[key])
        else:
            target[key] = value
