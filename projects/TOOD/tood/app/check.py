"""Check data sets: what they contain, and what is wrong with them."""

import dataclasses
import os
import shlex
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from tood.app.convert.door import Converted, Part, read_data
from tood.app.plan.rules import choose_input, find_finest_stride
from tood.data.annotations import DataSet, clean_content, count_objects
from tood.data.check import (
    SHARED,
    DataReport,
    Finding,
    InputSize,
    check_data,
    check_images,
    check_overlap,
    image_paths,
)
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError
from tood.utils.reading import guard_nesting

MOST_CLASSES = 20  # that are printed


class CheckedPart(NamedTuple):
    """A part of a data set, and what was found in it."""

    name: str  # "train", "val", "test" or "all"
    dataset: DataSet
    input_size: InputSize  # by which small objects are recognized
    report: DataReport

    @property
    def num_objects(self) -> Dict[str, int]:
        """Number of objects of each class, by its name."""
        return count_objects(self.dataset.content)

    def refuse_errors(self) -> None:
        """Raise UserError for mistakes that must be corrected first."""
        if self.report.errors:
            raise UserError(self.report.error_sentence())

    def __str__(self) -> str:
        texts = [f"{name} {number}" for name, number in self.num_objects.items()]
        more = f" and {len(texts) - MOST_CLASSES} more" if len(texts) > MOST_CLASSES else ""
        text = f"{self.report}\nObjects: {', '.join(texts[:MOST_CLASSES])}{more}."
        tiles = self.input_size.tiles
        if tiles.size:
            text += (
                "\nObjects are small for images of this size: tood train uses tiles of "
                f"{tiles.size} pixels that overlap by {tiles.overlap}."
            )
        return text


@dataclasses.dataclass(frozen=True)
class Checked:
    """The parts of data sets that were checked; as text, their reports."""

    parts: Sequence[CheckedPart]
    drawing: str = ""  # path of the drawn training images
    next: str = ""  # command that trains on them, if there is one

    @property
    def error(self) -> str:
        """The mistake to correct before a training, in one sentence; "" if there is none."""
        wrong = [part.report for part in self.parts if part.report.errors]
        return wrong[0].error_sentence() if wrong else ""

    def __str__(self) -> str:
        texts = [str(part) for part in self.parts]
        if self.drawing:
            texts.append(f"Images as a training may begin with them: {self.drawing}")
        if self.next and not self.error:
            texts.append(f"Next: {self.next}")
        return "\n".join(texts)


@accept_paths("data", "output", "config")
def check(
    data: Union[str, Sequence[str]],
    *,
    output: str = "",
    overwrite: bool = False,
    config: str = "",
    options: Sequence[str] = (),
) -> Checked:
    """Look through data sets, their images' heads as well.

    Args:
        data: a folder, FOLDER:PART or a file, in any format that ``tood.convert`` reads; or
            several.
        output: an image, to draw the first images as a training would see them.
        overwrite: a file that already exists.
        config: config of the drawing: a file, or a name of the project's.
        options: KEY, VALUE, ... of that config.

    Returns:
        what was found. Mistakes in the data are not raised: ``error`` is their sentence.

    Raises:
        UserError: for data that cannot be read.

    Example::

        checked = tood.check("photos/")
        print(checked, checked.error or "sound")
    """
    typed = {"--config-file": config, "--overwrite": overwrite, " ".join(options[:2]): options}
    unused = next((name for name, value in typed.items() if value and not output), "")
    if unused:
        raise UserError(f"{unused} is about the drawing; name it with --output, or omit {unused}.")
    names = [data] if isinstance(data, str) else list(data)
    parts = [part for name in names for part in _check_parts(read_data(name))]
    trained = [x for part in parts if part.name == "train" for x in list_paths(part.dataset)]
    for part in parts:
        if part.name != "train" and trained:
            part.report.findings.extend(check_overlap(trained, list_paths(part.dataset)))
    checked = Checked(parts, next=_make_command(names))
    if output and not checked.error:
        # Here, because the rest needs no PyTorch, which takes seconds to import.
        from tood.app.view import draw_training_images

        datasets = [part.dataset for part in parts]
        draw_training_images(datasets, output, config=config, options=options, overwrite=overwrite)
        checked = dataclasses.replace(checked, drawing=output)
    return checked


def _make_command(names: Sequence[str]) -> str:
    """Return the command that trains on data, the second of which are to validate on."""
    command = " --val-data ".join(shlex.quote(name) for name in names)
    return f"tood train {command}" if len(names) <= 2 else ""


def _check_parts(converted: Converted) -> List[CheckedPart]:
    """Check each part of a data set; the first report has what its account notes of all files."""
    parts = [check_part(part) for part in converted.parts.values()]
    where = "ledger.json of tood convert lists all"
    noted = [Finding(*row, where) for row in converted.ledger.noted() if row[0] != SHARED]
    orphans = converted.ledger.orphans()
    if orphans:
        remedy = "a training stops; add their images, or remove these files"
        what = "files of labels that belong to no image"
        noted.append(Finding(what, len(orphans), orphans[0], remedy, is_error=True))
    parts[0].report.findings.extend(noted)
    return parts


def list_paths(dataset: DataSet) -> List[str]:
    """Return the paths of the images of a data set."""
    return image_paths(dataset.content["images"], dataset.image_root)


def check_part(part: Part, to_train: Optional[bool] = None) -> CheckedPart:
    """Check a part: its annotations, and the heads of its images.

    Args:
        to_train: report what is found for training, or else for evaluation; default: by its name.

    Raises:
        UserError: for annotations that cannot be used at all.
    """
    with guard_nesting(part.source):
        content = clean_content(part.content, part.source, part.image_root, to_train=True)
    input_size = choose_input(content)
    stride = find_finest_stride(input_size.shorter)
    to_train = part.name not in ("val", "test") if to_train is None else to_train
    options = dict(to_train=to_train, filter_empty=False)
    report = check_data(part.source, content, input_size, stride, **options)
    report.findings.extend(check_images(content["images"], part.image_root))
    # Whether images are in several parts is checked by whoever knows the parts.
    dataset = DataSet(part.source, content, part.image_root, images_checked=True)
    return CheckedPart(part.name, dataset, input_size, report)


def read_dataset(
    data: str,
    prefer: Sequence[str] = ("val", "test", "all"),
    *,
    notify: Callable[[DataReport], None] = lambda report: None,
) -> DataSet:
    """Return the part of some data that is evaluated on, checked.

    Args:
        prefer: names of parts, in order of preference.
        notify: called with the findings, if there are any.

    Raises:
        UserError: for mistakes in the data, or if none of these parts exists and there are several.
    """
    converted = read_data(data)
    converted.ledger.refuse_orphans()
    parts = converted.parts
    name = next((x for x in prefer if x in parts), None)
    if name is None and len(parts) > 1:
        raise UserError(f"{data} has the parts {', '.join(parts)}; name one, as in {data}:train.")
    checked = check_part(parts[name] if name else next(iter(parts.values())), to_train=False)
    if checked.report.findings:
        notify(checked.report)
    checked.refuse_errors()
    return checked.dataset


def read_validation_data(
    val_data: Union[None, str, Sequence[str]],
    *,
    notify: Callable[[DataReport], None] = lambda report: None,
) -> Tuple[List[DataSet], List[str]]:
    """Return the data sets of files and folders, and the names of all, in the order given:
    registered ones are among them; see :func:`read_dataset`.

    Raises:
        UserError: for data that cannot be evaluated on.
    """
    named = list_names(val_data)
    datasets = {x: read_dataset(x, notify=notify) for x in named if not _is_registered(x)}
    return list(datasets.values()), [datasets[x].entry if x in datasets else x for x in named]


def list_names(val_data: Union[None, str, Sequence[str]]) -> List[str]:
    """Return the names of data sets, each once, of one, several or none."""
    named = [val_data] if isinstance(val_data, str) and val_data else list(val_data or ())
    return list(dict.fromkeys(named))


def _is_registered(name: str) -> bool:
    from detectron2.data import DatasetCatalog  # takes seconds to import

    # FOLDER:PART is registered as well, once it was evaluated on, and may have changed since.
    path = os.path.expanduser(name)
    exists = os.path.exists(path) or os.path.exists(path.rpartition(":")[0])
    return name in DatasetCatalog.list() and not exists
