"""YAML files, read without running anything that is in them: only configs in Python run code."""

import os
from typing import Any, Dict, Tuple

import detectron2
import yaml
from detectron2.utils.registry import locate

from tood.utils.errors import UserError, reason_of

# Its own configs may hold a computed list (Base-RetinaNet.yaml), and are as good as its code.
DETECTRON2_CONFIGS = os.path.join(os.path.dirname(detectron2.__file__), "model_zoo", "configs")
# What a saved config in Python may call: everything that these packages' parts define themselves.
CALLABLE_PACKAGES = (
    *("tood.modeling", "tood.data", "tood.evaluation", "tood.engine"),
    *("detectron2.modeling", "detectron2.layers", "detectron2.data", "detectron2.solver"),
    *("detectron2.evaluation", "detectron2.structures", "detectron2.projects"),
    *("torch.nn", "torch.optim", "torch.utils.data", "torchvision.ops", "torchvision.models"),
    *("timm", "fvcore.common.param_scheduler", "fvcore.nn", "fvcore.transforms"),
)


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node))
)


def read_yaml(path: str) -> Any:
    """Return the content of a file.

    Raises:
        UserError: for a file that is not YAML, or that would run code.
    """
    is_trusted = os.path.realpath(path).startswith(os.path.realpath(DETECTRON2_CONFIGS) + os.sep)
    try:
        with open(path, encoding="utf-8-sig") as f:
            return yaml.load(f, Loader=yaml.UnsafeLoader if is_trusted else _Loader)
    except yaml.constructor.ConstructorError as error:
        tag = str(error.problem).rpartition("tag:yaml.org,2002:")[2].strip("'")
        if tag.startswith("python/"):
            raise UserError(
                f"The config file {path} is refused: reading it would run code, for it needs "
                f"{tag}; write plain values, or a config in Python (.py)."
            ) from error
        raise UserError(_not_yaml(path, error)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"The config file {path} is not in UTF-8; save it as UTF-8.") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(_not_yaml(path, error)) from error


def _not_yaml(path: str, error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or reason_of(error)
    return f"The config file {path} cannot be read ({reason}); correct it, or name another one."


def read_yaml_with_base(path: str, before: Tuple[str, ...] = ()) -> Dict:
    """Return the content of a config, merged into those that its ``_BASE_`` names.

    Args:
        before: real paths of the files that led to this one.
    """
    real = os.path.realpath(path)
    if real in before:
        raise UserError(f"The config file {path} has itself as _BASE_; name another file there.")
    content = read_yaml(path)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"The config file {path} does not hold keys and values; correct it.")
    bases = content.pop("_BASE_", None) or []
    merged: Dict = {}
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str):
            raise UserError(f"_BASE_ in {path} is {base!r}; it must be the name of a file.")
        base = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        if not os.path.isfile(base):
            raise UserError(f"The config file {path} needs {base} (_BASE_), which does not exist.")
        _merge(read_yaml_with_base(base, (*before, real)), merged)
    _merge(content, merged)
    return merged


def states(path: str, key: str, *, apart_from: str = "") -> bool:
    """Return whether a config, or one of those that it is merged into, states a value.

    Args:
        key: of Detectron2's configs, "MODEL.WEIGHTS".
        apart_from: name of a file that is not asked.
    """
    if os.path.basename(path) == apart_from:
        return False
    content = read_yaml(path)
    content = content if isinstance(content, dict) else {}
    bases = content.get("_BASE_") or []
    for base in [bases] if isinstance(bases, str) else bases:
        base = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        if states(base, key, apart_from=apart_from):
            return True
    for step in key.split("."):
        content = content.get(step) if isinstance(content, dict) else None
    return content is not None


def _merge(source: Dict, target: Dict) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(value, target[key])
        else:
            target[key] = value


def check_targets(content: Any, path: str) -> None:
    """Raise UserError where a saved config in Python would call what it must not.

    Args:
        content: of the file.
    """
    for target in _targets(content):
        if not _is_allowed(target):
            raise UserError(
                f"The config file {path} is refused: it would call {target} (_target_), which is "
                "not of this project, Detectron2, PyTorch, timm or fvcore; a config in Python "
                "(.py) may call anything."
            )


def _is_allowed(target: Any) -> bool:
    """Return whether a name stands for something that ``CALLABLE_PACKAGES`` define: what a module
    has imported is not its own.
    """
    packages = {package.partition(".")[0] for package in CALLABLE_PACKAGES}
    if not isinstance(target, str) or target.partition(".")[0] not in packages:
        return False
    try:
        found = locate(target)
    except Exception:  # of an import; told where the config is used
        return True
    return str(getattr(found, "__module__", "")).startswith(CALLABLE_PACKAGES)


def _targets(node: Any):
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _targets(item)
