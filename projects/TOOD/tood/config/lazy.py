"""
Reading a config in Python, Detectron2's LazyConfig, and the options behind it: each mistake is one
sentence, in the words of such configs.
"""

import builtins
import difflib
import inspect
import os
import re
import traceback
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence, Set, Tuple

from detectron2.config import LazyConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from tood.config.lazy_view import LAZY_KEYS, VALUES, LazyView, target_of
from tood.utils.errors import UserError, first_line

__all__ = ["is_lazy", "keys_as_in", "lazy_names", "overridden_keys", "read_lazy_config"]

# What a lazy config must have, and whether it is a call.
PARTS = {
    "model": True,
    "optimizer": True,
    "lr_multiplier": True,
    "dataloader": False,
    "train": False,
}
_MISSING = object()


def is_lazy(config_file: str) -> bool:
    """Whether a file is a config in Python, or what a training by one has left."""
    if str(config_file).endswith(".py"):
        return True
    if not os.path.isfile(config_file):
        return False
    with open(config_file, encoding="utf-8", errors="replace") as f:
        return any(line.startswith("model:") for line in f)  # yacs's has MODEL


def read_lazy_config(config_file: str, overrides: Sequence[str] = ()) -> LazyView:
    """
    Args:
        config_file: in Python, or as ``LazyConfig.save`` writes it.
        overrides: "key=value", as Detectron2's ``LazyConfig.apply_overrides`` takes them.

    Raises:
        UserError: for a file or an override that cannot be used.
    """
    lazy = _load(config_file)
    for override in overrides:
        _override(lazy, override, config_file)
    for name, is_call in PARTS.items():
        node = lazy.get(name)
        if not isinstance(node, DictConfig) or (is_call and "_target_" not in node):
            raise UserError(
                f"The config file {config_file} has no {name}{' to call' if is_call else ''}; "
                "write it as the files in configs/lazy do, or import theirs."
            )
    _check_keywords(lazy)
    if OmegaConf.select(lazy, "dataloader.train.dataset.names") is None:
        raise UserError(
            f"The config file {config_file} has no dataloader.train.dataset.names, by which data "
            "are checked and their classes named."
        )
    return LazyView.of(lazy)


def overridden_keys(overrides: Sequence[str]) -> Set[str]:
    """The keys of the yacs config that overrides set."""
    paths = {override.lstrip("+").partition("=")[0] for override in overrides}
    return {key for key, path in LAZY_KEYS.items() if path in paths}


@contextmanager
def keys_as_in(config_file: str) -> Iterator[None]:
    """Users' mistakes inside of it name the keys as the config file has them."""
    try:
        yield
    except UserError as error:
        if not is_lazy(config_file):
            raise
        raise UserError(lazy_names(error.sentence())) from error


def lazy_names(text: str) -> str:
    """A text with the keys of a lazy config in the place of yacs's, save for those in quotes."""

    def name(match):
        key, file = match.groups()
        return f"{LAZY_KEYS[key]}{'=FILE' if file else ''}" if key in LAZY_KEYS else match[0]

    return re.sub(r"(?<!')\b([A-Z][A-Z0-9_]+(?:\.[A-Z0-9_]+)*)( FILE\b)?", name, text)


def _load(config_file: str) -> DictConfig:
    if not os.path.isfile(config_file):
        raise UserError(f"The config file {config_file} does not exist.")
    import_function = builtins.__import__
    try:
        lazy = LazyConfig.load(config_file)
    except Exception as error:  # of whatever a config in Python does
        raise UserError(
            f"The config file {config_file} cannot be used: {first_line(error)}{_place(error)}."
        ) from error
    finally:
        builtins.__import__ = import_function  # Detectron2 leaves its own behind an error
    if not isinstance(lazy, DictConfig):
        raise UserError(f"The config file {config_file} is not what LazyConfig.save writes.")
    return lazy


def _override(lazy: DictConfig, override: str, config_file: str) -> None:
    match = re.fullmatch(r"\+*([\w.]+)=(.*)", override, re.DOTALL)
    key = match[1] if match else override
    if key in LAZY_KEYS:
        raise UserError(
            f"{key!r} is a key of .yaml configs; for {config_file}, write {LAZY_KEYS[key]}=VALUE."
        )
    if match is None:
        advice = "write KEY=VALUE, as train.max_iter=100"
        if override.startswith("--"):
            advice = "flags stand before the options"
        raise UserError(f"{override!r} is no option for {config_file}; {advice}.")
    before = _find(lazy, key)
    if before is _MISSING and not _may_be_added(lazy, key):
        close = difflib.get_close_matches(key, [*_all_keys(lazy), *VALUES.values()], n=1)
        raise UserError(
            f"There is no {key} in {config_file}"
            + (f"; did you mean {close[0]}?" if close else ".")
        )
    try:
        LazyConfig.apply_overrides(lazy, [f"{key}={match[2]}"])
        after = _find(lazy, key)
    except Exception as error:  # of Detectron2, OmegaConf and Hydra
        raise UserError(
            f"The option {override} cannot be used: {first_line(error)}; a value with special "
            "characters needs quotes of its own, as 'key=\"value\"'."
        ) from error
    if isinstance(before, DictConfig) and not isinstance(after, DictConfig):
        raise UserError(
            f"{key} is {after!r}, but it has keys of its own, as {key}.{next(iter(before))}; set "
            "one of them."
        )


def _find(lazy: DictConfig, key: str) -> Any:
    return OmegaConf.select(
        lazy, key, default=_MISSING, throw_on_resolution_failure=False, throw_on_missing=False
    )


def _may_be_added(lazy: DictConfig, key: str) -> bool:
    """Another argument of a call, whose name is checked later, or a key that is read."""
    parent = _find(lazy, key.rpartition(".")[0]) if "." in key else None
    return target_of(parent) is not None or key in VALUES.values()


def _check_keywords(lazy: DictConfig) -> None:
    """Raise UserError for an argument that what is called does not take."""
    for path, node in _calls(lazy):
        target = target_of(node)
        keywords = _keywords_of(target)
        for key in node:
            if keywords is None or key == "_target_" or key in keywords:
                continue
            close = difflib.get_close_matches(key, keywords, n=1)
            raise UserError(
                f"{path}.{key} is no argument of {getattr(target, '__name__', target)}"
                + (f"; did you mean {path}.{close[0]}?" if close else ".")
            )


def _calls(node, path: str = "") -> Iterator[Tuple[str, DictConfig]]:
    """Every node that is a call, with its path."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        keys = list(node)
    elif isinstance(node, ListConfig):
        keys = range(len(node))
    else:
        return
    for key in keys:
        if not OmegaConf.is_interpolation(node, key):
            yield from _calls(node[key], f"{path}.{key}" if path else key)


def _keywords_of(target) -> Optional[List[str]]:
    """The names of its arguments; None if it takes any."""
    names = []
    for function in inspect.getmro(target) if inspect.isclass(target) else [target]:
        if inspect.isclass(target) and "__init__" not in vars(function):
            continue
        try:
            parameters = inspect.signature(
                vars(function)["__init__"] if inspect.isclass(target) else function
            ).parameters.values()
        except (TypeError, ValueError):  # not written in Python
            return None
        names += [p.name for p in parameters]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return None


def _all_keys(node: DictConfig, prefix: str = "") -> List[str]:
    keys = []
    for name in node:
        keys.append(f"{prefix}{name}")
        if not OmegaConf.is_interpolation(node, name) and isinstance(node[name], DictConfig):
            keys += _all_keys(node[name], f"{prefix}{name}.")
    return keys


def _place(error: BaseException) -> str:
    """The line of a config in Python that an error is from."""
    if isinstance(error.__cause__, SyntaxError):
        return f" (line {error.__cause__.lineno}: {error.__cause__.msg})"
    frames = [x for x in traceback.extract_tb(error.__traceback__) if x.name == "<module>"]
    return f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
