"""YOLO's ``data.yaml`` and ``obj.data``: which classes and which images a data set has."""

import os
import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from tood.app.convert.folder import Folder, decode, relative_path
from tood.app.convert.ledger import Ledger
from tood.app.convert.names import SPLITS, folder_splits
from tood.app.convert.objects import omit_numbers, refuse_heading
from tood.app.convert.splits import list_images
from tood.utils.errors import UserError
from tood.utils.folders import is_output
from tood.utils.plain_yaml import load_yaml
from tood.utils.reading import MAX_CONFIG, MiB, compose, guard_reading, make_dict

SPLIT_KEYS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
USUAL_KEYS = ("train", "val", "valid", "test")  # others may be shares, for example
# Files that are read if they name the classes alone.
DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


class Config(NamedTuple):
    """Content of a ``data.yaml`` or ``obj.data``."""

    file: str
    names: List[str]
    entries: Dict[str, List[str]]  # split -> folders and lists of images; may be empty
    base: str  # its "path"
    num_pose_values: int = 0
    absent: Sequence[str] = ()  # entries of the test split, which is not part of every export
    names_file: str = ""  # that its names are in


def find_config(folder: Folder, has_labels: Callable[[], bool]) -> Optional[Config]:
    """Return the configuration of a folder, if there is one.

    Args:
        has_labels: whether there are labels, for a configuration that names classes alone.

    Raises:
        UserError: for two of them, or one that contradicts itself.
    """
    configs = [_read_yaml(folder, f, has_labels) for f in folder.with_suffix(".yaml", ".yml")]
    configs += [_read_obj_data(folder, f) for f in folder.with_suffix(".data")]
    found = [config for config in configs if config is not None]
    found = [config for config in found if config.entries] or found
    if found and not found[0].entries and all(x.names == found[0].names for x in found):
        found = found[:1]
    if len(found) > 1:
        first, second = (folder.path(c.file) for c in found[:2])
        raise UserError(f"{first} and {second} each describe a data set; name one of them.")
    if not found:
        return None
    config = _omit_absent_test(folder, found[0])
    for entries in config.entries.values():
        for entry in entries:
            _resolve(folder, config, entry)  # includes folders outside of the root
    return config


def find_config_above(path: str) -> str:
    """Return FILE.yaml:SPLIT if a configuration beside a folder names that as one of its splits,
    FILE.yaml if all of them are inside, or "": exports are named by their folder "train" as well.
    """
    above = Folder(os.path.normpath(os.path.join(path, os.pardir)), walk=False)
    path = os.path.realpath(path)
    names = [x for x in os.listdir(above.root) if x.lower().endswith((".yaml", ".yml"))]
    for name in sorted(names):
        config, inside = _read_yaml(above, name, lambda: False), {}
        for split, entries in config.entries.items() if config else ():
            found = [_find(above, config, x)[:1] for x in entries]
            places = [f"{os.path.realpath(above.path(p))}{os.sep}" for x in found for p in x]
            inside[split] = [p.startswith(path + os.sep) for p in places]
        named = [split for split, x in inside.items() if any(x)]
        if named and all(map(all, inside.values())):  # the whole data set
            return above.path(name)
        if len(named) == 1 and all(inside[named[0]]):
            return f"{above.path(name)}:{named[0]}"
    return ""


def _read_yaml(folder: Folder, file: str, has_labels: Callable[[], bool]) -> Optional[Config]:
    data, path = folder.read(file), folder.path(file)
    try:
        with guard_reading(path, "correct it; it must be YAML of plain values"):
            if len(data) > MAX_CONFIG:
                raise ValueError(f"it has more than {MAX_CONFIG / MiB:g} MiB")
            text = decode(data, path)
            content = load_yaml(text)
            as_text = load_yaml(text, as_text=True)  # names such as yes, off and 007
    except UserError:
        if re.search(rb"^(names|nc)\s*:", data, re.MULTILINE):
            raise
        return None
    if not isinstance(content, dict):
        return None
    with guard_reading(path, "leave one of both"):
        content, as_text = (
            make_dict((str(key).lower(), value) for key, value in x.items())
            for x in (content, as_text)
        )
    if content.get("train") and "nc" in content and not content.get("names"):
        raise UserError(f"{folder.path(file)} does not name its classes; add the key names.")
    shape = content.get("kpt_shape")
    is_shape = isinstance(shape, list) and [type(x) for x in shape] == [int, int]
    is_alone = not any(content.get(key) for key in SPLIT_KEYS)
    if is_alone and not (os.path.basename(file).lower() in DATA_FILES and has_labels()):
        return None
    config = _read_config(folder, file, content, as_text.get("names"), content.get("nc"))
    return config and config._replace(num_pose_values=shape[0] * shape[1] if is_shape else 0)


def _read_obj_data(folder: Folder, file: str) -> Optional[Config]:
    """Read darknet's and CVAT's configuration, ``key = value`` in lines."""
    if not re.search(rb"^\s*names\s*=", folder.head(file).replace(b"\0", b""), re.MULTILINE):
        return None  # of another program
    pairs = [map(str.strip, line.split("=", 1)) for line in folder.lines(file) if "=" in line]
    with guard_reading(folder.path(file), "leave one of both"):
        content = make_dict((key, value) for key, value in pairs)
    if not any(content.get(key) for key in SPLIT_KEYS):
        return None
    return _read_config(folder, file, content, content.get("names"), content.get("classes"))


def _read_config(
    folder: Folder, file: str, content: Dict, names: Any, number: Any
) -> Optional[Config]:
    entries: Dict[str, List[str]] = {}
    for key in SPLIT_KEYS:
        if content.get(key) and (key in USUAL_KEYS or isinstance(content[key], (str, list))):
            some = content[key] if isinstance(content[key], list) else [content[key]]
            entries.setdefault(SPLITS[key], []).extend(str(entry) for entry in some)
    if not names or not content["names"]:
        return None
    listed = _find_names_file(folder, file, names) if isinstance(names, str) else ""
    names = read_names(folder, file, names, number)
    return Config(file, names, entries, str(content.get("path") or ""), names_file=listed)


def _find_names_file(folder: Folder, file: str, text: str) -> str:
    """Return the file that a configuration names in the place of its classes, or ""."""
    for path in (text, os.path.basename(text)):
        listed = os.path.normpath(os.path.join(os.path.dirname(file), path))
        if listed in folder.files:
            return listed
    return ""


def read_names(folder: Folder, file: str, names: Any, number: Any) -> List[str]:
    """Return the names of classes in a configuration or a list, in the order of their numbers.

    Args:
        names: list, {number: name}, or text.
        number: number of classes that the file states, or None.

    Raises:
        UserError: for names that are empty, doubled, or of another number.
    """
    path = folder.path(file)
    if isinstance(names, dict):
        names = {str(key).lstrip("0") or "0": name for key, name in names.items()}
        if set(names) != {str(i) for i in range(len(names))}:
            raise UserError(f"{path}: the keys of names must be 0 to {len(names) - 1}; count them.")
        names = [names[str(i)] for i in range(len(names))]
    number = int(number) if re.fullmatch(r"[0-9]{1,9}", str(number)) else None
    if isinstance(names, str):
        names = _names_in_text(folder, file, names, number)
    names = ["" if name is None else name for name in names]
    nameless = next((n for n in names if isinstance(n, (dict, list)) or not str(n).strip()), None)
    if nameless is not None:
        raise UserError(
            f"{path} has {nameless!r} among the names of its classes; write one text for each."
        )
    names = [compose(str(name).strip()) for name in names]
    doubled = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if not names or doubled is not None:
        raise UserError(
            f"{path} names {'no classes' if not names else f'the class {doubled!r} twice'}; "
            "correct its names."
        )
    if number not in (None, len(names)):
        raise UserError(
            f"{path} says that there are {number} classes (nc), but names {len(names)}: "
            f"{', '.join(names)[:80]}; correct one of them."
        )
    return names


def _names_in_text(folder: Folder, file: str, text: str, number: Optional[int]) -> List[str]:
    """Return names that are written as one text, or in a file that it names."""
    listed = _find_names_file(folder, file, text)
    if listed:
        lines = folder.lines(listed)
        refuse_heading(folder, listed, lines)
        return omit_numbers(lines)
    if re.fullmatch(r"\S+\.(names|txt)", text.strip()):
        raise UserError(
            f"{folder.path(file)} says that the classes are in {text.strip()}, which is not there; "
            "add this file, or write the names."
        )
    inner = text.strip().strip("[](){}")
    ways = [
        [x.strip().strip("'\"") for x in re.split(separator, inner) if x.strip()]
        for separator in (r"[,;\n]", r"\s+", r"\Z")
    ]
    fitting = [way for way in ways if len(way) == number]
    return fitting[0] if fitting else ways[0]


# --- places ------------------------------------------------------------------------------------


def _omit_absent_test(folder: Folder, config: Config) -> Config:
    """Return a configuration without its test split if nothing of that is there: Roboflow names
    one, whether or not it is part of the export.
    """
    tests = config.entries.get("test", [])
    if not tests or len(config.entries) == 1 or any(_find(folder, config, x) for x in tests):
        return config
    entries = {split: x for split, x in config.entries.items() if split != "test"}
    return config._replace(entries=entries, absent=tests)


def _find(folder: Folder, config: Config, entry: str) -> List[str]:
    """Return the places of an entry of a configuration that exist, relative to the folder."""
    entry, home = entry.replace("\\", "/"), os.path.dirname(config.file)
    inner = re.sub(r"^(\.{1,2}/)+", "", entry)
    bases = [os.path.join(home, config.base), home] if config.base else [home]
    tried = [os.path.join(base, entry) for base in bases]
    # Roboflow's paths begin one folder too high; others are of another machine.
    steps = inner.strip("/").split("/")
    ways = [steps[i:] for i in range(len(steps))]
    # What is left of the path must say as much of the split: valid/images is not images.
    is_split = [bool(folder_splits("/".join([*way, ""]))) for way in ways]
    tried += [os.path.join(home, *way) for way, x in zip(ways, is_split) if x == is_split[0]]
    return [p for p in tried if os.path.exists(folder.path(p))]


def _resolve(folder: Folder, config: Config, entry: str) -> str:
    """Return the path, relative to the folder, of an entry of a configuration."""
    there = _find(folder, config, entry)
    entry, home = entry.replace("\\", "/"), os.path.dirname(config.file)
    inner = re.sub(r"^(\.{1,2}/)+", "", entry)
    if not there:
        raise UserError(
            f"{folder.path(config.file)}: its entry {entry} is not there; correct the path, or "
            "remove the key."
        )
    real = [os.path.realpath(folder.path(p)) for p in (there[0], os.path.join(home, inner))]
    is_double = entry.startswith("../") and not config.base and os.path.exists(real[1])
    if is_double and real[0] != real[1]:
        raise UserError(
            f"{folder.path(config.file)}: its entry {entry} could be {real[0]} or {real[1]}; set "
            "path, or write an absolute path."
        )
    return _place(folder, config, folder.path(there[0]))


def _place(folder: Folder, config: Config, path: str) -> str:
    """Return where the folder has a path, after including its data if they lie outside."""
    real = os.path.realpath(path)
    is_folder = os.path.isdir(real)
    if not (is_folder or os.path.isfile(real)):
        raise UserError(
            f"{folder.path(config.file)} names {path}, which is not a regular file; name a folder "
            "or a list of images."
        )
    start = real if is_folder else os.path.dirname(real)
    if start not in folder.folders and not is_output(start):
        base = _find_base(folder, config, start)
        if os.path.dirname(base) == base:
            raise UserError(
                f"{folder.path(config.file)} names {path}, of which the whole disk {base} would be "
                "read; put images and labels into one folder."
            )
        folder.include(base)
    home = real if is_folder else os.path.realpath(os.path.dirname(path))
    if home not in folder.folders:
        raise UserError(
            f"{folder.path(config.file)} names {path}, which is in a hidden folder or in an output "
            "folder of tood; move the data to another one."
        )
    return folder.folders[home] if is_folder else _join(folder.folders[home], path)


def _find_base(folder: Folder, config: Config, start: str) -> str:
    """Return the folder that contains images, in a folder outside of the root, and their labels."""
    base = os.path.realpath(os.path.join(folder.path(os.path.dirname(config.file)), config.base))
    if config.base and f"{start}/".startswith(f"{base}/"):
        return base
    steps = start.split("/")
    last = next((i for i, s in enumerate(steps) if s.lower() == "images"), len(steps))
    return "/".join(steps[:last]) or "/"


def _join(folder: str, path: str) -> str:
    return f"{folder}/{os.path.basename(path)}".lstrip("/")


def list_images_by_split(folder: Folder, ledger: Ledger, config: Config) -> Dict[str, List[str]]:
    """Return the images of each split that a configuration names.

    Raises:
        UserError: for a split without images.
    """
    splits: Dict[str, List[str]] = {}
    for split, entries in config.entries.items():
        images = splits.setdefault(split, [])
        for entry in entries:
            place = _resolve(folder, config, entry)
            if place in folder.files and place not in folder.names.images:
                base = folder.path(os.path.join(os.path.dirname(place), config.base))
                near = [os.path.dirname(place), relative_path(base, folder.root), ""]
                images += list_images(folder, ledger, place, near)
            else:
                prefix = f"{place}/" if place else ""
                images += [i for i in folder.images if i.startswith(prefix) or i == place]
        if not images:
            raise UserError(
                f"{folder.path(config.file)}: its {split}, {entries[0]}, contains no images; "
                "correct the path, or remove the key."
            )
    return splits
