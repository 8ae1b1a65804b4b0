"""Data sets by name, by file, or in memory: what ``DATASETS.TRAIN`` and ``DATASETS.TEST`` may
contain beside Detectron2's registered names (:mod:`tood.data.entries`).
"""

import difflib
import logging
import os
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from tood.data.annotations import (
    DataSet,
    class_names,
    contiguous_ids,
    has_size,
    read_annotations,
    to_records,
)
from tood.data.check import (
    DataReport,
    Finding,
    InputSize,
    check_data,
    check_images,
    check_overlap,
    image_paths,
    split_broken,
)
from tood.data.entries import OwnData, parse_own_data
from tood.utils.errors import UserError

logger = logging.getLogger(__name__)

# The images of a larger data set are not opened before a training; on a network's disk that could
# take an hour.
MAX_IMAGES_LOOKED_AT = 50_000


class DataOptions(NamedTuple):
    """The data sets of a run, and what they are checked against."""

    train: Sequence[str]  # names or files; empty without training
    test: Sequence[str]
    num_classes: int
    filter_empty: bool  # leave out training images without objects
    train_size: InputSize  # the smallest that training resizes to
    test_size: InputSize
    finest_stride: int  # of the feature maps, pixels
    max_detections: int = 0  # of an image; 0 where it is not known


def prepare_datasets(
    data: DataOptions,
    *,
    training: bool,
    known_classes: Sequence[str] = (),
    datasets: Sequence[DataSet] = (),
) -> List[DataReport]:
    """Register the data sets that are named by file, and check all data sets before a long run: all
    that their files tell, short of decoding the images.

    Args:
        training: whether ``data.train`` is going to be used, too.
        known_classes: of the weights; they come first where they include those of the data. Sets
            that are named by their files may lack some, or have them in another order: they are
            matched by their names.
        datasets: those that were read before; their files are not opened again.

    Returns:
        the reports on the data sets whose files are known; none of them holds an error.

    Raises:
        UserError: for no data set at all, an unknown name, a missing or unusable file, no
            objects to train on, or classes that differ from the config's or between data sets.
    """
    if training and not data.train:
        raise UserError(
            "No training data: name it with --train-data, as ANNOTATIONS.json:IMAGES or a folder, "
            "or in the config."
        )
    if not training and not data.test:
        raise UserError(
            "No data to evaluate on: name it with --val-data, as ANNOTATIONS.json:IMAGES or a "
            "folder, or in the config."
        )
    train = list(data.train) if training else []
    entries = list(dict.fromkeys([*train, *data.test]))
    own = _read_own_data(entries, train, datasets)
    names = _united_names(entries, own, known_classes)
    reports = []
    for entry in entries:
        uses = dict(to_train=entry in train, to_test=entry in data.test)
        if entry in own:
            report = _register(own[entry], names, data, **uses)
        else:
            report = _check_registered(entry, data, **uses)
        if report is not None:
            shared = _check_overlap(train, entry, own) if uses["to_test"] else []
            reports.append(report._replace(findings=[*report.findings, *shared]))
    _check_common_classes(own)
    _check_number_of_classes(names, entries, data)
    _check_classes(entries, data)
    return reports


def _check_overlap(train: List[str], entry: str, own: Dict[str, DataSet]) -> List[Finding]:
    if entry not in own or own[entry].images_checked or not comm.is_main_process():
        return []
    trained = [path for name in train if name in own for path in _paths_of(own[name])]
    paths = _paths_of(own[entry])
    too_many = len(trained) + len(paths) > MAX_IMAGES_LOOKED_AT
    return [] if too_many or not trained else check_overlap(trained, paths)


def _paths_of(dataset: DataSet) -> List[str]:
    return image_paths(dataset.content["images"], dataset.image_root)


def _read_own_data(
    entries: Sequence[str], train: Sequence[str], datasets: Sequence[DataSet]
) -> Dict[str, DataSet]:
    known = {dataset.entry: dataset for dataset in datasets}
    own = {}
    for entry in entries:
        files = parse_own_data(entry)
        if entry in known:
            own[entry] = known[entry]
        elif files is not None:
            content = read_annotations(*files, to_train=entry in train)
            own[entry] = DataSet(entry, content, files.image_root)
    return own


def _united_names(
    entries: Sequence[str], own: Dict[str, DataSet], known: Sequence[str]
) -> Optional[List[str]]:
    """Return the classes of all data sets by their names, in the order of the first set that has
    them; None where names do not tell classes apart, or no set is named by its files.
    """
    lists = [class_names(own[entry].content) for entry in entries if entry in own]
    if not lists or any(len(set(names)) < len(names) for names in lists):
        return None
    if all(set(names) <= set(known) for names in lists):
        lists = [list(known), *lists]
    names = list(dict.fromkeys(name for names in lists for name in names))
    for entry, dataset in own.items():
        lacking = [name for name in names if name not in class_names(dataset.content)]
        if lacking and comm.is_main_process():
            texts = ", ".join(repr(name) for name in lacking[:5])
            logger.warning(
                f"{entry} has no class {texts}{' and others' * (len(lacking) > 5)}, which other "
                "data or the weights have; its other classes are matched by their names."
            )
    return names


def _check_common_classes(own: Dict[str, DataSet]) -> None:
    """Raise UserError for two data sets that have nothing to do with each other."""
    (first, dataset), *others = own.items() or [(None, None)]
    for other, other_dataset in others:
        a, b = class_names(dataset.content), class_names(other_dataset.content)
        if not set(a) & set(b):
            raise UserError(
                f"The data sets {first} and {other} have no class in common: one has {a[0]!r}, the "
                f"other {b[0]!r}; name data of the same classes."
            )


def _check_number_of_classes(
    names: Optional[List[str]], entries: Sequence[str], data: DataOptions
) -> None:
    if names is not None and len(names) != data.num_classes:
        sets = f"The data set {entries[0]} has"
        if len(entries) > 1:
            sets = f"The data sets {', '.join(entries)} together have"
        raise UserError(
            f"{sets} {len(names)} classes, but MODEL.TOOD.NUM_CLASSES is {data.num_classes}; set "
            f"it to {len(names)}."
        )


class _Remembered(NamedTuple):
    content: Dict
    version: Tuple  # of the file
    once: bool


_remembered: Dict[str, _Remembered] = {}


def remember_content(name: str, content: Dict, *, once: bool = False) -> None:
    """Keep the annotations of a registered data set in memory, for :func:`read_content`.

    Args:
        once: for the first call alone.
    """
    _remembered[name] = _Remembered(content, _version_of(name), once)


def read_content(name: str) -> Dict:
    """Return the annotations of a registered data set in their clean form: those in memory, or of
    its file, if that has changed since or was not read yet.

    Raises:
        UserError: for a file that cannot be read.
    """
    kept = _remembered.get(name)
    if kept is not None and kept.version == _version_of(name):
        if kept.once:
            del _remembered[name]
        return kept.content
    metadata = MetadataCatalog.get(name)
    json_file = PathManager.get_local_path(metadata.json_file)
    content = read_annotations(json_file, metadata.get("image_root", ""), to_train=False)
    remember_content(name, content)
    return content


def _version_of(name: str) -> Tuple:
    path = MetadataCatalog.get(name).get("json_file", "")
    if not os.path.isfile(path):
        return (path,)
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_size


def load_own_data(
    json_file: str,
    image_root: str,
    names: Optional[Sequence[str]] = None,
    content: Optional[Dict] = None,
) -> List[Dict]:
    """Return the records of a data set in Detectron2's format, without the boxes that have no width
    or no height, which it warns of. Unlike Detectron2's ``load_coco_json`` it reads nothing but
    boxes: objects do not vanish for the form of their segmentation.

    Args:
        names: of the classes; default: the file's, in the order of their ids.
        content: of the file, if it was read before.

    Raises:
        UserError: for a file that cannot be read, or annotations that cannot be used.
    """
    if content is None:
        content = read_annotations(json_file, image_root, to_train=False)
    _, broken = split_broken(content)
    _raise_errors(DataReport(json_file, 0, 0, 0, [f for f in broken if f.number]))
    omitted = sum(not has_size(a["bbox"]) for a in content.get("annotations", ()))
    if omitted:
        logger.warning(
            f"{json_file}: ignored {omitted} annotations whose box has no width or no height."
        )
    return to_records(content, image_root, contiguous_ids(content, names))


def _register(
    dataset: DataSet,
    names: Optional[List[str]],
    data: DataOptions,
    *,
    to_train: bool,
    to_test: bool,
) -> DataReport:
    entry, content, image_root, _ = dataset
    files = parse_own_data(entry) or OwnData(entry, image_root)
    report = _check_content(dataset, files.json_file, data, to_train)
    if entry in MetadataCatalog.list():
        MetadataCatalog.remove(entry)
    MetadataCatalog.get(entry).set(
        json_file=files.json_file,
        image_root=image_root,
        evaluator_type="coco",
        thing_classes=names or class_names(content),
        thing_dataset_id_to_contiguous_id=contiguous_ids(content, names),
    )
    _set_loader(entry, files, names)
    # A large set that is only trained on would be in memory twice.
    remember_content(entry, content, once=not to_test)
    return report


def _set_loader(name: str, files: OwnData, names: Optional[List[str]] = None) -> None:
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    DatasetCatalog.register(name, lambda: load_own_data(*files, names, read_content(name)))


def _check_content(
    dataset: DataSet, json_file: str, data: DataOptions, to_train: bool
) -> DataReport:
    content = dataset.content
    report = check_data(
        json_file,
        content,
        data.train_size if to_train else data.test_size,
        data.finest_stride,
        to_train=to_train,
        filter_empty=data.filter_empty,
        max_detections=data.max_detections,
    )
    # One of several processes opens the files, and all hear of it: they must end together.
    found = []
    few = len(content["images"]) <= MAX_IMAGES_LOOKED_AT
    if few and not dataset.images_checked and comm.is_main_process():
        found = check_images(content["images"], dataset.image_root)
    found = comm.all_gather(found)[0]
    report = report._replace(findings=[*report.findings, *found])
    _raise_errors(report)
    if to_train and not any(
        has_size(a["bbox"]) and not a["iscrowd"] for a in content["annotations"]
    ):
        raise UserError(
            f"{json_file} has no objects with a size; there is nothing to train on in it."
        )
    return report


def _raise_errors(report: DataReport) -> None:
    if not report.errors:
        return
    if comm.is_main_process():
        logger.error(str(report))
    raise UserError(report.error_sentence())


def _check_registered(
    name: str, data: DataOptions, *, to_train: bool, to_test: bool
) -> Optional[DataReport]:
    """Check as much as the metadata allow; return None where they do not name the files."""
    if name not in DatasetCatalog.list():
        close = difflib.get_close_matches(name, DatasetCatalog.list(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        if os.path.exists(os.path.expanduser(name)):
            raise UserError(
                f"{name} is not a file in COCO's format; write such files by tood convert {name} "
                "--output FOLDER, and name them as FILE.json:IMAGES."
            )
        raise UserError(
            f"There is no data set named {name!r}; {hint}Other data are named by their file, as "
            "ANNOTATIONS.json:IMAGES."
        )
    json_file = MetadataCatalog.get(name).get("json_file")
    if json_file and "://" not in json_file and not os.path.isfile(json_file):
        raise UserError(
            f"The data set {name} needs {json_file}, which is not there; set the environment "
            "variable DETECTRON2_DATASETS to the folder that holds it, or name other data with "
            "--train-data and --val-data."
        )
    metadata = MetadataCatalog.get(name)
    image_root = metadata.get("image_root")
    if metadata.get("evaluator_type") != "coco" or not (json_file and image_root):
        return None
    if "://" in json_file or "://" in image_root:
        return None
    files = OwnData(json_file, image_root)
    content = read_annotations(*files, to_train=to_train)
    report = _check_content(DataSet(name, content, image_root), json_file, data, to_train)
    remember_content(name, content, once=not to_test)
    if DatasetCatalog[name].__module__ == load_coco_json.__module__:
        # Detectron2's own loader would omit objects whose segmentation it cannot read.
        _set_loader(name, files)
        MetadataCatalog.get(name).set(
            thing_classes=class_names(content),
            thing_dataset_id_to_contiguous_id=contiguous_ids(content),
        )
    return report


def _check_classes(names: List[str], data: DataOptions) -> None:
    """Raise UserError unless all data sets have the same classes, as many as the config says."""
    first = None
    for name in names:
        metadata = MetadataCatalog.get(name)
        if metadata.get("thing_classes") is None:
            DatasetCatalog.get(name)  # a set registered in Python learns its classes by loading
        classes = list(metadata.get("thing_classes") or [])
        if len(classes) != data.num_classes:
            raise UserError(
                f"The data set {name} has {len(classes)} classes, but MODEL.TOOD.NUM_CLASSES is "
                f"{data.num_classes}; set it to {len(classes)}."
            )
        first = first or classes
        if classes != first:
            a, b = next((a, b) for a, b in zip(first, classes) if a != b)
            raise UserError(
                f"The data sets {names[0]} and {name} have different classes, or the same in "
                f"another order of their ids: where one has {a!r}, the other has {b!r}."
            )
