"""YOLO: a text file of labels per image, and a ``data.yaml``, ``obj.data`` or ``classes.txt``."""

import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from tood.app.convert.build import (
    WITHIN,
    Contents,
    Format,
    Labels,
    Object,
    build_contents,
    match_labels,
    read_numbers,
)
from tood.app.convert.folder import Folder, decode, relative_path
from tood.app.convert.ledger import CLASSES, CONFIGURATION, Ledger
from tood.app.convert.names import SPLITS, find_area, folder_splits, get_stem
from tood.app.convert.splits import list_images, read_split_lists
from tood.utils.errors import UserError
from tood.utils.folders import is_output
from tood.utils.plain_yaml import load_yaml
from tood.utils.reading import MAX_CONFIG, MiB, guard_reading, make_dict

SPLIT_KEYS = ("train", "val", "valid", "test")  # of a data.yaml or obj.data
_LINE = re.compile(r"\s*\d+(\.0*)?([ \t]+[-+.\deE]+){4,}\s*$")


class Config(NamedTuple):
    """Content of a ``data.yaml`` or ``obj.data``."""

    file: str
    names: List[str]
    entries: Dict[str, List[str]]  # split -> folders and lists of images
    base: str  # its "path"
    num_pose_values: int = 0
    absent: Sequence[str] = ()  # entries of the test split, which is not part of every export


class Found(NamedTuple):
    """A data set in YOLO's format: its configuration, or its lists of classes."""

    config: Optional[Config]
    class_files: List[str]
    labels: List[str]


def find_yolo(folder: Folder) -> Optional[Found]:
    """Recognize a configuration, or a list of classes with labels.

    Raises:
        UserError: for two configurations, or one that contradicts itself.
    """
    configs = [_read_yaml(folder, f) for f in folder.with_suffix(".yaml", ".yml")]
    configs += [_read_obj_data(folder, f) for f in folder.with_suffix(".data")]
    configs = [config for config in configs if config is not None]
    if len(configs) > 1:
        first, second = (folder.path(c.file) for c in configs[:2])
        raise UserError(f"{first} and {second} each describe a data set; name one of them.")
    if configs:
        configs[0] = _omit_absent_test(folder, configs[0])
        for entries in configs[0].entries.values():
            for entry in entries:
                _resolve(folder, configs[0], entry)  # includes folders outside of the root
    texts = folder.with_suffix(".txt", ".names")
    class_files = [f for f in texts if _is_class_file(folder, f)]
    if not configs and not class_files:
        return None
    labels = label_files(folder)
    return (
        Found(configs[0] if configs else None, class_files, labels) if configs or labels else None
    )


def find_config_above(path: str) -> str:
    """Return FILE.yaml:SPLIT if a configuration beside a folder names that as one of its splits,
    FILE.yaml if all of them are inside, or "": exports are named by their folder "train" as well.
    """
    above = Folder(os.path.normpath(os.path.join(path, os.pardir)), walk=False)
    path = os.path.realpath(path)
    names = [x for x in os.listdir(above.root) if x.lower().endswith((".yaml", ".yml"))]
    for name in sorted(names):
        config, inside = _read_yaml(above, name), {}
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


def label_files(folder: Folder) -> List[str]:
    """Return the text files that are labels, or at the place of an image's labels."""
    texts = [f for f in folder.with_suffix(".txt") if not _is_class_file(folder, f)]
    starts = {f: decode(folder.head(f), f, "replace").split("\n") for f in texts}
    lines = {f: next(filter(str.strip, start), "") for f, start in starts.items()}
    if not any(_LINE.match(line) for line in lines.values()):
        return []
    find = folder.names.plain_area.find
    beside = {f for f in texts if find(get_stem(f), find_area(f))}
    # An empty file, too, says something; other texts among labels are a README, for example.
    empty = {f for f in texts if not lines[f] and "labels" in f.lower().split("/")[:-1]}
    return [f for f in texts if _LINE.match(lines[f]) or f in beside or f in empty]


def read_yolo(folder: Folder, found: Found, ledger: Ledger) -> Contents:
    """Read the labels of all images that a configuration names, or of all."""
    config = found.config
    if config is not None:
        ledger.enter(config.file, CONFIGURATION)
        for entry in config.absent:
            ledger.note("its test images are not there", entry)
        names, splits = config.names, _images_by_split(folder, ledger, config)
    else:
        names = list(dict.fromkeys(n for f in found.class_files for n in _names_in(folder, f)))
        splits = read_split_lists(folder, ledger)
    order = _class_order(folder, ledger, found)
    found_labels, lines = {}, []
    for file in found.labels:
        objects = _read_objects(folder, file, order(file), config, lines)
        found_labels[file] = Labels(objects, relative=True)
    _check_poses(folder, lines)
    for file in (file for file, values in lines if len(values) > 4):
        ledger.note("lines of polygons, whose boxes are kept", file)
    _check_units(folder, lines)
    records = match_labels(folder, ledger, found_labels)
    if config is not None:
        used = {image for images in splits.values() for image in images}
        reason = f"not named by {config.file}"
        ledger.ignore([i for i in folder.images if i not in used], reason)
        ledger.ignore([r.file for r in records if r.image not in used], reason)
    return build_contents(folder, ledger, records, splits=splits, classes=names)


YOLO = Format("YOLO", find_yolo, read_yolo)


# --- configurations ----------------------------------------------------------------------------


def _read_yaml(folder: Folder, file: str) -> Optional[Config]:
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
    config = _read_config(folder, file, content, as_text.get("names"), content.get("nc"))
    return config and config._replace(num_pose_values=shape[0] * shape[1] if is_shape else 0)


def _read_obj_data(folder: Folder, file: str) -> Optional[Config]:
    """Read darknet's and CVAT's configuration, ``key = value`` in lines."""
    if not re.search(rb"^\s*names\s*=", folder.head(file).replace(b"\0", b""), re.MULTILINE):
        return None  # of another program
    pairs = [map(str.strip, line.split("=", 1)) for line in folder.lines(file) if "=" in line]
    with guard_reading(folder.path(file), "leave one of both"):
        content = make_dict((key, value) for key, value in pairs)
    return _read_config(folder, file, content, content.get("names"), content.get("classes"))


def _read_config(
    folder: Folder, file: str, content: Dict, names: Any, number: Any
) -> Optional[Config]:
    entries: Dict[str, List[str]] = {}
    for key in SPLIT_KEYS:
        if content.get(key):
            some = content[key] if isinstance(content[key], list) else [content[key]]
            entries.setdefault(SPLITS[key], []).extend(str(entry) for entry in some)
    if not entries or not names or not content["names"]:
        return None
    names = _read_names(folder, file, names, number)
    return Config(file, names, entries, str(content.get("path") or ""))


def _read_names(folder: Folder, file: str, names: Any, number: Any) -> List[str]:
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
    names = [str(name).strip() for name in names]
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
    for path in (text, os.path.basename(text)):
        listed = os.path.normpath(os.path.join(os.path.dirname(file), path))
        if listed in folder.files:
            return folder.lines(listed)
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


def _images_by_split(folder: Folder, ledger: Ledger, config: Config) -> Dict[str, List[str]]:
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


# --- classes -----------------------------------------------------------------------------------


def _is_class_file(folder: Folder, file: str) -> bool:
    if os.path.basename(file).lower() != "classes.txt":
        return file.lower().endswith(".names")
    first = decode(folder.head(file), file, "replace").strip().split("\n")[0]
    return not (_LINE.match(first) and folder.names.plain_area.find("classes", find_area(file)))


def _names_in(folder: Folder, file: str) -> List[str]:
    if "" in (line.strip() for line in folder.text(file).rstrip().splitlines()):
        raise UserError(
            f"{folder.path(file)} has an empty line before a name, so that the numbers of the "
            "classes are not certain; remove it, or name the class."
        )
    names = folder.lines(file)
    comment = next((name for name in names if name.startswith("# ")), None)
    if comment is not None:
        raise UserError(
            f"{folder.path(file)} has the line {comment!r:.60}, which would be the name of a "
            "class; remove it."
        )
    return _read_names(folder, file, names, None)


def _class_order(folder: Folder, ledger: Ledger, found: Found):
    """Return a function from a file of labels to the names of its classes: those of the
    configuration, or of the next list of classes in its folder or above.
    """
    config, stated = found.config, {}
    for file in found.class_files:
        ledger.enter(file, CLASSES)
        names = _names_in(folder, file)
        _check_order(folder, stated.setdefault(os.path.dirname(file), (file, names)), (file, names))
        if config is not None:
            _check_order(folder, (file, names), (config.file, config.names))

    def order(file: str) -> List[str]:
        home = os.path.dirname(file)
        while home and home not in stated:
            home = os.path.dirname(home)
        if config is not None or home in stated:
            return config.names if config else stated[home][1]
        longest = max(stated.values(), key=lambda x: len(x[1]))
        for other in stated.values():
            _check_order(folder, longest, other, f", and neither is above {folder.path(file)}")
        return longest[1]

    return order


def _check_order(folder: Folder, a: Tuple, b: Tuple, why: str = "") -> None:
    """Raise UserError if two files with their names of classes contradict each other."""
    if any(x != y for x, y in zip(a[1], b[1])):
        raise UserError(
            f"{folder.path(a[0])} and {folder.path(b[0])} number the classes differently{why}; "
            "remove the wrong one, or put each beside its labels."
        )


# --- labels ------------------------------------------------------------------------------------


def _read_objects(
    folder: Folder, file: str, names: Sequence[str], config: Optional[Config], lines: List
) -> List[Object]:
    """Return the objects of a file, relative to its image's size; add its boxes to ``lines``."""
    objects, pose = [], config.num_pose_values if config else 0
    for i, line in enumerate(folder.text(file).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{folder.path(file)}, line {i},"
        number, *values = read_numbers(line.split(), where)
        if not 0 <= number < len(names) or number != int(number):
            raise UserError(
                f"{folder.path(file)} has the class {number:g}, but there are {len(names)} "
                f"classes, counted from 0 ({', '.join(names)[:80]}); name all of them."
            )
        if pose and len(values) not in (4, 4 + pose):
            raise UserError(
                f"{where} has {len(values)} numbers after the class, but kpt_shape says that there "
                f"are 4 or {4 + pose}; correct one of them."
            )
        if pose:
            values = values[:4]
        objects.append(Object(names[int(number)], _read_box(values, where)))
        lines.append((file, values))
    return objects


def _read_box(values: Sequence[float], where: str) -> Tuple[float, float, float, float]:
    if len(values) == 4:
        x, y, w, h = values
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2
    if len(values) < 6 or len(values) % 2:
        raise UserError(
            f"{where} cannot be read: it has {len(values)} numbers after the class, but boxes have "
            "4 and polygons 6, 8, ...; export it again, or add kpt_shape if these are key points."
        )
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _check_poses(folder: Folder, lines: Sequence[Tuple[str, Sequence[float]]]) -> None:
    """Raise UserError if lines seem to be boxes and key points, not polygons: all have as many
    numbers, nearly all points after the first four numbers lie in the box that these are, and most
    of these sizes are no point among the others.
    """
    more = [(file, v) for file, v in lines if len(v) > 4]
    numbers = {len(v) for _, v in more}
    # Some triangles and turned boxes look like that as well.
    if len(more) < (10 if numbers & {6, 8} else 4) or len(numbers) > 1:
        return
    inside, apart = [], 0
    for _, (x, y, w, h, *rest) in more:
        step = 3 if len(rest) % 3 == 0 and set(rest[2::3]) <= {0, 1, 2} else 2
        points = [(a, b) for a, b in zip(rest[::step], rest[1::step]) if a > 0 < b]
        inside += [abs(a - x) <= w / 2 and abs(b - y) <= h / 2 for a, b in points]
        xs, ys = zip((x, y), *points)
        apart += not (min(xs) <= w <= max(xs) and min(ys) <= h <= max(ys))
        if rest[-2:] == [x, y]:  # a closed outline
            return
    if sum(inside) >= 0.9 * len(inside) and apart > len(more) / 2:
        raise UserError(
            f"{folder.path(more[0][0])} seems to contain a box and key points in each line; add "
            "kpt_shape to a data.yaml, for example kpt_shape: [5, 2]."
        )


def _check_units(folder: Folder, lines: Sequence[Tuple[str, Sequence[float]]]) -> None:
    """Raise UserError if most lines are in pixels, or are corners."""
    large = [file for file, values in lines if max(values) > 1.5 or min(values) < -0.5]
    boxes = [(file, v) for file, v in lines if len(v) == 4]
    beyond = [
        file
        for file, (x, y, w, h) in boxes
        if max(x + w / 2, y + h / 2, w / 2 - x + 1, h / 2 - y + 1) > 1 + WITHIN
    ]
    # Centres that are all below the widths and heights belong to objects as large as their image.
    is_corners = all(v[2] >= v[0] and v[3] >= v[1] for _, v in boxes)
    for wrong, kind, least in (
        (large, "pixels", len(lines) / 10),
        (beyond if is_corners else [], "corners", len(boxes) / 10),
    ):
        if len(wrong) > least:  # a few are mistakes of their objects, which are noted
            raise UserError(
                f"{folder.path(wrong[0])} seems to be in {kind}, as {len(wrong)} of {len(lines)} "
                "lines; YOLO's are relative to the image's size: class, centre x, centre y, width, "
                "height."
            )
