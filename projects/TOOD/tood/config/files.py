"""YAML files, each read once and without running anything that is in them."""

import copy
import functools
import itertools
import os
import re
from typing import Any, Dict, FrozenSet, List, NamedTuple, Set, Tuple

import yaml

from tood.config.check import known_keys
from tood.config.zoo import CONFIGS
from tood.utils.errors import UserError
from tood.utils.plain_yaml import PlainLoader, load_yaml
from tood.utils.reading import MAX_CONFIG, guard_reading, read_regular

# The only expression in Detectron2's configs (Base-RetinaNet.yaml), and its value.
COMPUTED = {
    "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]": [
        [x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in [32, 64, 128, 256, 512]
    ]
}
_PYTHON = "tag:yaml.org,2002:python/"
BASE = "Base-TOOD.yaml"
MAX_FILES = 50  # of one config


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
    if not os.path.exists(path):
        raise UserError(f"The config file {path} does not exist; name another one.")
    typed: Set[str] = set()
    content = _read_with_base(path, typed, [])
    return ConfigFile(path, content, frozenset(typed))


def _read_with_base(
    path: str, typed: Set[str], opened: List[str], before: Tuple[str, ...] = ()
) -> Dict:
    """Return the content of a config, merged into those that its ``_BASE_`` names; ``before`` are
    the real paths of the files that led to it. Keys of all files but ``BASE`` are added to
    ``typed``, and the paths of all to ``opened``.
    """
    real = os.path.realpath(path)
    if real in before:
        raise UserError(f"The config file {path} has itself as _BASE_; name another file there.")
    opened.append(path)
    if len(opened) > MAX_FILES:
        raise UserError(f"The config file {opened[0]} has more than {MAX_FILES} bases (_BASE_).")
    content = _read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"The config file {path} does not contain keys and values; correct it.")
    bases = content.pop("_BASE_", None) or []
    merged: Dict = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise UserError(f"_BASE_ in {path} is {base!r}; it must be the name of a file.")
        base = _find_base(path, base)
        _merge(_read_with_base(base, typed, opened, (*before, real)), merged)
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
        path: path of the new file, which is not written here.
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


class _Loader(PlainLoader):
    """Knows tuples, and the computed lists of ``COMPUTED``, which are not computed here."""


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node))
)


def _look_up_computed(loader: _Loader, node: yaml.Node) -> object:
    expression = "".join(map(str, loader.construct_sequence(node)))
    if expression not in COMPUTED:
        raise yaml.YAMLError(f"it computes {expression[:80]}; write its value")
    return copy.deepcopy(COMPUTED[expression])


_Loader.add_constructor(f"{_PYTHON}object/apply:eval", _look_up_computed)


def _read_yaml(path: str) -> Any:
    with guard_reading(path):
        text = read_regular(path, MAX_CONFIG).decode("utf-8-sig")
    if re.search(r"(^|[{,\s])['\"]?_target_['\"]?\s*:", text):
        raise make_lazy_error(path)
    try:
        with guard_reading(path):
            return copy.deepcopy(_parse(text))  # of which the caller changes values
    except UserError as error:
        code = re.search(rf"'{_PYTHON}(.*)'", getattr(error.__cause__, "problem", None) or "")
        if code is None:
            raise
        raise UserError(
            f"The config file {path} is refused: reading it would run code, because it needs "
            f"python/{code[1]}; write plain values."
        ) from error


@functools.lru_cache(maxsize=16)  # one command reads a config and its bases several times
def _parse(text: str) -> Any:
    return load_yaml(text, loader=_Loader)


def make_lazy_error(path: str) -> UserError:
    return UserError(
        f"The config file {path} is of a training by Detectron2's lazyconfig_train_net.py, and "
        "names functions to call; name a YAML config of the same model with --config-file."
    )


def _merge(source: Dict, target: Dict) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(value, target[key])
        else:
            target[key] = value
