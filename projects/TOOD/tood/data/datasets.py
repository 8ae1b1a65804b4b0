"""Data sets by name, by file, or in memory: what ``DATASETS.TRAIN`` and ``DATASETS.TEST`` may
contain beside Detectron2's registered names (:mod:`tood.data.entries`).
"""

import logging
import os
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

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
    MAX_IMAGES_LOOKED_AT,
    DataReport,
    Finding,
    InputSize,
    check_data,
    check_images,
    check_overlap,
    check_taught,
    image_paths,
    split_broken,
)
from tood.data.entries import OwnData, parse_own_data
from tood.utils.errors import UserError
from tood.utils.reading import compose
from tood.utils.suggest import suggest

logger = logging.getLogger(__name__)

_contents: Dict[str, Dict] = {}  # clean annotations of the prepared data sets, by their names


class DataOptions(NamedTuple):
    """The data sets of a run, and what they are checked against."""

    train: Sequence[str]  # names or files; empty without training
    test: Sequence[str]
    num_classes: int
    filter_empty: bool  # ignore training images without objects
    train_size: InputSize  # the smallest input size of training
    test_size: InputSize
    finest_stride: int  # stride of the finest feature map in pixels
    max_detections: int = 0  # maximum per image; 0 if it is not known


def prepare_datasets(
    data: DataOptions,
    *,
    training: bool,
    known_classes: Sequence[str] = (),
    datasets: Sequence[DataSet] = (),
    taught: Sequence[str] = (),
) -> List[DataReport]:
    """Register the data sets that are named by file, and check all data sets before a long run,
    without decoding the images. Each annotation file is opened once; loaders and evaluators use
    what was read.

    Args:
        training: whether ``data.train`` is going to be used, too.
        known_classes: classes of the weights; they come first if they include those of the data.
            Data sets in COCO's format may lack some, or have them in another order: they are
            matched by their names.
        datasets: those that were read before; their files are not opened again.
        taught: images that a teacher was trained on.

    Returns:
        the reports on the data sets whose files are known; none of them contains an error.

    Raises:
        UserError: for no data set at all, an unknown name, a missing or unusable file, no
            objects to train on, or classes that differ from the config's or between data sets.
    """
    if not (data.train if training else data.test):
        use, flag = ("train", "--train-data") if training else ("evaluate", "--val-data")
        raise UserError(
            f"No data to {use} on: name it with {flag}, as ANNOTATIONS.json:IMAGES, or in the "
            "config."
        )
    train = list(data.train) if training else []
    entries = list(dict.fromkeys([*train, *data.test]))
    given = {dataset.entry: dataset for dataset in datasets}
    known = [given.get(entry) or read_entry(entry, to_train=entry in train) for entry in entries]
    found = [dataset for dataset in known if dataset is not None]
    reports = []
    for dataset in found:
        report = _check_dataset(dataset, data, to_train=dataset.entry in train)
        if dataset.entry in data.test:
            shared = _check_overlap([x for x in found if x.entry in train], dataset)
            shared += _check_taught(taught, dataset)
            report = report._replace(findings=[*report.findings, *shared])
        reports.append(report)
        _contents[dataset.entry] = dataset.content
    own = [dataset for dataset in found if _is_loaded_here(dataset.entry)]
    names = _unite_classes(own, known_classes)
    for dataset in own:
        _register(dataset, names, to_test=dataset.entry in data.test)
    _check_classes(entries, data, [dataset.entry for dataset in own] if names else [])
    return reports


def read_entry(entry: str, *, to_train: bool = False) -> Optional[DataSet]:
    """Read the annotations of a data set; return None if their file is not known."""
    files = parse_own_data(entry) or _find_registered(entry)
    if files is None:
        return None
    return DataSet(entry, read_annotations(*files, to_train=to_train), files.image_root)


def _find_registered(name: str) -> Optional[OwnData]:
    """Return the files of a registered data set; None if its metadata do not name files on this
    machine in COCO's format.
    """
    if name not in DatasetCatalog.list():
        if os.path.exists(os.path.expanduser(name)):
            raise UserError(
                f"{name} is not a file in COCO's format; write such files by tood convert {name} "
                "--output FOLDER, and name them as FILE.json:IMAGES."
            )
        hint = suggest(name, DatasetCatalog.list()) or "."
        raise UserError(
            f"There is no data set named {name!r}{hint} Other data are named by their file, as "
            "ANNOTATIONS.json:IMAGES."
        )
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    if json_file and "://" not in json_file and not os.path.isfile(json_file):
        raise UserError(
            f"The data set {name} needs {json_file}, which does not exist; set the environment "
            "variable DETECTRON2_DATASETS to the folder that contains it, or name other data with "
            "--train-data and --val-data."
        )
    is_coco = metadata.get("evaluator_type") == "coco" and json_file and image_root
    is_local = is_coco and "://" not in json_file + image_root
    return OwnData(json_file, image_root) if is_local else None


def _is_loaded_here(entry: str) -> bool:
    """Return whether :func:`load_own_data` loads a data set: unless it was registered with a custom
    loader. Detectron2's own would omit objects whose segmentation it cannot read.
    """
    loaders = (load_coco_json.__module__, __name__)
    return entry not in DatasetCatalog.list() or DatasetCatalog[entry].__module__ in loaders


def _unite_classes(own: Sequence[DataSet], known: Sequence[str]) -> Optional[List[str]]:
    """Return the classes of all data sets by their names, in the order of the first set that has
    them; None if names do not distinguish classes, or without a data set.
    """
    lists = {dataset.entry: class_names(dataset.content) for dataset in own}
    if not lists or any(len(set(names)) < len(names) for names in lists.values()):
        return None
    knows_all = all(set(names) <= set(known) for names in lists.values())
    united = [name for names in lists.values() for name in names]
    united = list(dict.fromkeys([*(known if knows_all else ()), *united]))
    (first, of_first), *_ = lists.items()
    for entry, names in lists.items():
        if not set(names) & set(of_first):
            raise UserError(
                f"The data sets {first} and {entry} have no class in common: one has "
                f"{of_first[0]!r}, the other {names[0]!r}; name data of the same classes."
            )
        lacking = [name for name in united if name not in names]
        if lacking and comm.is_main_process():
            texts = ", ".join(repr(name) for name in lacking[:5])
            logger.warning(
                f"{entry} has no class {texts}{' and others' * (len(lacking) > 5)}, which other "
                "data or the weights have; its other classes are matched by their names."
            )
    return united


def _check_dataset(dataset: DataSet, data: DataOptions, *, to_train: bool) -> DataReport:
    content, json_file = dataset.content, _get_file(dataset.entry)
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


def _get_file(entry: str) -> str:
    files = parse_own_data(entry)
    return files.json_file if files else MetadataCatalog.get(entry).get("json_file", entry)


def _raise_errors(report: DataReport) -> None:
    if report.errors:
        if comm.is_main_process():
            logger.error(str(report))
        raise UserError(report.error_sentence())


def _check_overlap(train: Sequence[DataSet], dataset: DataSet) -> List[Finding]:
    if dataset.images_checked or not comm.is_main_process():
        return []
    trained = [path for x in train for path in image_paths(x.content["images"], x.image_root)]
    paths = image_paths(dataset.content["images"], dataset.image_root)
    too_many = len(trained) + len(paths) > MAX_IMAGES_LOOKED_AT
    return [] if too_many or not trained else check_overlap(trained, paths)


def _check_taught(taught: Sequence[str], dataset: DataSet) -> List[Finding]:
    paths = image_paths(dataset.content["images"], dataset.image_root)
    few = len(taught) + len(paths) <= MAX_IMAGES_LOOKED_AT
    return check_taught(taught, paths) if taught and few and comm.is_main_process() else []


def _register(dataset: DataSet, names: Optional[List[str]], *, to_test: bool) -> None:
    entry, content, image_root, _ = dataset
    json_file = _get_file(entry)
    metadata = MetadataCatalog.get(entry).as_dict()
    MetadataCatalog.remove(entry)  # its values cannot be changed
    metadata.update(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        thing_classes=names or class_names(content),
        thing_dataset_id_to_contiguous_id=contiguous_ids(content, names),
    )
    MetadataCatalog.get(entry).set(**metadata)
    if entry in DatasetCatalog.list():
        DatasetCatalog.remove(entry)
    # A large set that is only trained on would be in memory twice.
    take = _contents.get if to_test else _contents.pop
    DatasetCatalog.register(
        entry, lambda: load_own_data(json_file, image_root, names, take(entry, None))
    )


def _check_classes(entries: Sequence[str], data: DataOptions, united: Sequence[str]) -> None:
    """Raise UserError unless all data sets have the same classes, as many as the config says.

    Args:
        united: data sets that have the classes of all of them.
    """
    first = None
    for entry in entries:
        metadata = MetadataCatalog.get(entry)
        if metadata.get("thing_classes") is None:
            DatasetCatalog.get(entry)  # a set registered in Python learns its classes by loading
        classes = list(metadata.get("thing_classes") or [])
        if len(classes) != data.num_classes:
            sets = f"The data set {entry} has"
            if entry in united and len(united) > 1:
                sets = f"The data sets {', '.join(united)} together have"
            raise UserError(
                f"{sets} {len(classes)} classes, but MODEL.TOOD.NUM_CLASSES is {data.num_classes}; "
                f"set it to {len(classes)}."
            )
        first = first or classes
        if classes != first:
            a, b = next((a, b) for a, b in zip(first, classes) if a != b)
            raise UserError(
                f"The data sets {entries[0]} and {entry} have different classes, or the same in "
                f"another order of their ids: where one has {a!r}, the other has {b!r}."
            )


def read_content(name: str) -> Dict:
    """Return the annotations of a registered data set in their clean form: those in memory, if it
    was prepared, or those of its file.

    Raises:
        UserError: for a file that cannot be read.
    """
    if name in _contents:
        return _contents[name]
    metadata = MetadataCatalog.get(name)
    json_file = PathManager.get_local_path(metadata.json_file)
    return read_annotations(json_file, metadata.get("image_root", ""), to_train=False)


def list_images(entry: str) -> List[str]:
    """Return the paths of those images of a data set that exist; none if its annotations cannot be
    read, or if it is not named by its file.
    """
    files = parse_own_data(entry)
    if files is None:
        return []
    try:
        content = read_annotations(*files, to_train=False)
    except UserError:
        return []
    return [x for x in image_paths(content["images"], files.image_root) if os.path.isfile(x)]


def load_own_data(
    json_file: str,
    image_root: str,
    names: Optional[Sequence[str]] = None,
    content: Optional[Dict] = None,
) -> List[Dict]:
    """Return the records of a data set in Detectron2's format, without the boxes that have no width
    or no height, of which it warns. Unlike Detectron2's ``load_coco_json`` it reads nothing but
    boxes: no object is omitted because of its segmentation.

    Args:
        names: names of the classes; default: the file's, in the order of their ids.
        content: content of the file, if it was read before.

    Raises:
        UserError: for a file that cannot be read, or annotations that cannot be used.
    """
    if content is None:
        content = read_annotations(json_file, image_root, to_train=False)
    _raise_errors(DataReport(json_file, 0, 0, 0, split_broken(content)[1]))
    omitted = sum(not has_size(a["bbox"]) for a in content.get("annotations", ()))
    if omitted:
        logger.warning(
            f"{json_file}: ignored {omitted} annotations whose box has no width or no height."
        )
    return to_records(content, image_root, contiguous_ids(content, names))


def find_class_names(data: DataOptions, checkpoint: Dict) -> List[str]:
    """
    Args:
        data: annotation files are opened only if the checkpoint does not name the classes.
        checkpoint: content of a file.

    Returns:
        a name for each class; numbers, if no source names them.
    """

    def candidates() -> Iterator[Optional[Sequence[str]]]:
        yield checkpoint.get("class_names")
        yield from (_read_class_names(entry) for entry in (*data.test, *data.train))
        yield [str(i) for i in range(data.num_classes)]

    found = next(x for x in candidates() if x and len(x) == data.num_classes)
    return [compose(name) for name in found]


def _read_class_names(entry: str) -> Optional[List[str]]:
    if entry in DatasetCatalog.list():
        return MetadataCatalog.get(entry).get("thing_classes")
    own_data = parse_own_data(entry)
    try:
        return class_names(read_annotations(*own_data, to_train=False)) if own_data else None
    except UserError:
        return None
