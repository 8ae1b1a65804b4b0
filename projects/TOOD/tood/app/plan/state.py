"""The output folder of ``tood train``: what was typed for its training, and how far that got.

A preparation writes :data:`LEDGER` first, with the arguments, then the data, and :data:`PLAN`
last. With the plan, the training can begin or continue; without it, the preparation was stopped.
"""

import contextlib
import glob
import json
import os
import re
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

from tood.app.convert.ledger import CLASSES, CONFIGURATION, LABELS, LIST
from tood.utils.errors import UserError
from tood.utils.files import PART, count_up, list_counted
from tood.utils.folders import remove_output
from tood.utils.lock import LockedError, is_locked, locked
from tood.utils.reading import MAX_TEXT, read_regular

PLAN = "plan.yaml"
LEDGER = os.path.join("data", "ledger.json")
DATA = (os.path.join("data", "train.json"), os.path.join("data", "val.json"))
CALIBRATION = os.path.join("data", "calibration.json")  # if a part is kept for tood guarantee
TYPED, ROOT = "typed", "image_root"  # keys in the ledger
# Files of a training without a checkpoint.
LOGS = ("config.yaml", "metrics.json", "events.out.tfevents.*")
PARTS = os.path.join("data", f"*{PART}")
PREPARED = (PLAN, *DATA, "data/val[0-9]*.json", CALIBRATION, PARTS, *LOGS, LEDGER)
DRAWN = ("predictions.png", "report/*", "inference/*", "last_evaluation.json")
INSTEAD = {
    "epochs": ", type SOLVER.MAX_ITER for another length",
    "images_per_step": ", type SOLVER.IMS_PER_BATCH for another number",
}


class Wishes(NamedTuple):
    """Values that a user has typed, to which the plan gives way."""

    data: str = ""
    val_data: Sequence[str] = ()
    val_share: Optional[float] = None
    group: str = ""
    config: str = ""
    epochs: Optional[float] = None
    images_per_step: Optional[int] = None
    model: str = ""
    calibration_share: Optional[float] = None
    options: Sequence[str] = ()  # KEY, VALUE, ...

    def as_dict(self) -> Dict:
        """Return all of it for a JSON file, with the absolute form of paths."""
        names = [_make_absolute(x) for x in self.val_data]
        paths = {"data": _make_absolute(self.data), "config": _make_absolute(self.config)}
        return {**self._asdict(), **paths, "val_data": names, "options": list(self.options)}


def list_words(typed: Wishes) -> List[str]:
    """Return what was typed as words of a command line: the data, then pairs of a flag and its
    value, and of KEY and VALUE; paths below the current folder are relative to it.
    """
    words = [_make_relative(typed.data)]
    for name, value in typed._asdict().items():
        if name in ("data", "options") or value in (None, ""):
            continue
        flag = "--config-file" if name == "config" else f"--{name.replace('_', '-')}"
        for x in [value] if not isinstance(value, (list, tuple)) else value:
            words += [flag, f"{x:g}" if isinstance(x, float) else _make_relative(str(x))]
    flags = {key: (name, write) for name, (key, write) in FLAGS.items()}
    keys = []
    for key, value in zip(typed.options[::2], typed.options[1::2]):
        name, write = flags.get(key, ("", str))
        bare = value.strip("(),") if name == "image_size" else value
        if name and write(bare) == value:  # as a flag writes it
            words += [f"--{name.replace('_', '-')}", bare]
        else:
            keys += [key, _make_relative(str(value))]
    return words + keys


def _make_relative(path: str) -> str:
    """Return the short form of a path; other text stays as it is."""
    short = os.path.relpath(path) if os.path.isabs(path) else path
    return path if short.startswith(os.pardir) else short


SMALLEST = 32  # size of images, pixels
# Options that may be paths: a training may be resumed from another folder.
PATHS = ("MODEL.TOOD.TEACHER",)
# Flags that are values of the config.
FLAGS = {
    "image_size": ("INPUT.MIN_SIZE_TRAIN", lambda size: f"({size},)"),
    "device": ("MODEL.DEVICE", str),
    "lr": ("SOLVER.BASE_LR", str),
    "seed": ("SEED", str),
}


def list_options(options: Sequence[str], **flags: object) -> List[str]:
    """Return options without the output folder, and with those of flags, which may be None or "".

    Raises:
        UserError: for a flag and an option that ask for two values of one thing.
    """
    typed = dict(zip(options[::2], options[1::2]))
    typed.pop("OUTPUT_DIR", None)
    typed.update({key: _make_absolute(typed[key]) for key in PATHS if key in typed})
    for name, value in flags.items():
        if value in (None, ""):
            continue
        if name == "image_size" and value < SMALLEST:
            raise UserError(f"--image-size is {value}; it must be at least {SMALLEST} pixels.")
        if name == "device" and not re.fullmatch(r"cpu|cuda(:\d+)?", value):
            raise UserError(f"--device is {value}; write cpu, cuda, or cuda:1 for the second GPU.")
        key, write = FLAGS[name]
        text = write(value)
        if typed.setdefault(key, text) != text:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is {value}, and {key} {typed[key]}; omit one of them.")
    return [x for item in typed.items() for x in item]


def find_path(data: str) -> str:
    """Return the path in FOLDER, FOLDER:PART, FILE or FILE.json:IMAGES."""
    file, is_entry, _ = data.partition(".json:")
    path = os.path.expanduser(f"{file}.json" if is_entry else data)
    return path if os.path.exists(path) else path.rpartition(":")[0] or path


def _make_absolute(name: str) -> str:
    """Return the absolute form of a path; names of data sets and configs stay as they are."""
    return os.path.abspath(os.path.expanduser(name)) if os.path.exists(find_path(name)) else name


def _identify(value: object) -> object:
    """Return what is equal for two forms of one value: links lead to one file."""
    if isinstance(value, (list, tuple)):
        return [_identify(x) for x in value]
    if not isinstance(value, str) or not os.path.exists(find_path(value)):
        return value
    path = find_path(value)
    return os.path.realpath(path) + os.path.expanduser(value)[len(path) :]


def is_ready(output: str) -> bool:
    """Return whether a preparation of a training was finished."""
    return os.path.isfile(os.path.join(output, PLAN))


def read_begun(output: str) -> Optional[Wishes]:
    """Return what was typed for the training in a folder; None if ``tood train`` has begun none."""
    try:
        return Wishes(**json.loads(read_regular(os.path.join(output, LEDGER), MAX_TEXT))[TYPED])
    except (UserError, ValueError, LookupError, TypeError, RecursionError):
        return None


def read_image_root(output: str) -> str:
    """Return the folder that names of images were relative to before they were written to
    ``OUTPUT/data``; "" if it is not known.
    """
    try:
        root = json.loads(read_regular(os.path.join(output, LEDGER), MAX_TEXT)).get(ROOT)
    except (UserError, ValueError, AttributeError, RecursionError):
        return ""
    is_known = isinstance(root, str)
    return os.path.normpath(os.path.join(output, os.path.dirname(LEDGER), root)) if is_known else ""


def find_changed(output: str) -> str:
    """Return a file with labels that was changed after it was read for a training, or ""."""
    account, root = os.path.join(output, LEDGER), read_image_root(output)
    with contextlib.suppress(
        UserError, OSError, ValueError, LookupError, TypeError, RecursionError
    ):
        begun = os.path.getmtime(account)
        for name, (role, _) in json.loads(read_regular(account, MAX_TEXT))["files"].items():
            path = os.path.join(root, name)
            is_read = role in (LABELS, LIST, CLASSES, CONFIGURATION) and os.path.exists(path)
            if is_read and os.path.getmtime(path) > begun:
                return path
    return ""


def complete_wishes(wishes: Wishes, begun: Wishes, output: str) -> Wishes:
    """Return the arguments given with ``--resume``, completed by those of the beginning.

    Raises:
        UserError: for other data or flags than at the beginning.
    """
    for name in Wishes._fields[:-1]:
        typed, before = getattr(wishes, name), getattr(begun, name)
        if typed in (None, "", (), []):
            wishes = wishes._replace(**{name: before})
        elif _identify(typed) != _identify(before):
            raise UserError(_describe_difference(name, typed, before, output))
    options = {}
    for typed in (begun.options, wishes.options):
        options.update(zip(typed[::2], typed[1::2]))
    return wishes._replace(options=[x for item in options.items() for x in item])


def _describe_difference(name: str, typed: object, before: object, output: str) -> str:
    flag = {"data": "", "config": "--config-file "}.get(name, f"--{name.replace('_', '-')} ")
    begun = f"with {flag}{_format(before)}" if before not in (None, "", []) else f"without {flag}"
    remedy = "name the same data" if name == "data" else f"omit the flag{INSTEAD.get(name, '')}"
    return (
        f"The training in {output} was begun {begun.rstrip()}, not with {flag}{_format(typed)}; "
        f"{remedy}, or name another --output."
    )


def _format(value: object) -> str:
    values = value if isinstance(value, (list, tuple)) else [value]
    return ", ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in values)


def _list_used(output: str, begun: Optional[Wishes]) -> List[str]:
    """Return names of a checkpoint, or of files that are not of ``tood train``."""
    patterns = ["last_checkpoint", "*.pth"]
    if begun is None:  # what a training would remove or replace
        patterns = ["last_checkpoint", "model_*.pth", *DRAWN]
        # PARTS may be of a preparation that was killed at its first file.
        patterns += [pattern for pattern in PREPARED if pattern != PARTS]
    paths = (os.path.join(glob.escape(output), pattern) for pattern in patterns)
    return [os.path.relpath(x, output) for path in paths for x in sorted(glob.glob(path))]


def is_used(output: str) -> bool:
    """Return whether :func:`refuse_used` refuses a folder for a new training."""
    return bool(_list_used(output, read_begun(output)))


def find_output(default: str, data: str, *, resume: bool) -> str:
    """Return a folder that was not typed: the default one, or the first of DEFAULT-2, DEFAULT-3 and
    so on that is neither used nor locked; to resume, the one of the highest number with a training
    on the data.
    """
    if not resume:
        return count_up(default, lambda x: is_used(x) or is_locked(x))
    begun = ((folder, read_begun(folder)) for folder in list_counted(default))
    same = (x for x, typed in begun if typed and _identify(typed.data) == _identify(data))
    return next(same, default)


@contextlib.contextmanager
def locked_output(default: str, data: str, *, is_typed: bool, resume: bool) -> Iterator[str]:
    """Lock the folder of a training, and give its name. Of two trainings that begin at once, the
    second one gets the next number, unless the folder was typed.

    Raises:
        UserError: for a folder that was typed or is to be resumed, and that another training has
            locked; or for one that cannot be written to.
    """
    is_fixed = is_typed or resume
    while True:
        output = default if is_typed else find_output(default, data, resume=resume)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(output, "--output"))
            except LockedError:
                if is_fixed:
                    raise
                continue
            if is_fixed or not is_used(output):  # judged again, now that it cannot change
                yield output
                return


def refuse_used(output: str, begun: Optional[Wishes], *, resume: bool) -> None:
    """
    Raises:
        UserError: for a folder with a checkpoint, or with files that are not of ``tood train``.
    """
    used = _list_used(output, begun)
    is_training = any(
        x in ("last_checkpoint", "config.yaml", PLAN) or x[-4:] == ".pth" for x in used
    )
    if is_training and resume:
        lacks = PLAN if begun else f"what was typed in {LEDGER}"
        raise UserError(
            f"tood train cannot continue the training in {output}, which contains {used[0]}, but "
            f"not {lacks}; continue with train_net.py --resume, or name another --output."
        )
    if used:
        continued = "continue its training with --resume, or " if is_training else ""
        raise UserError(
            f"{output} has been used already (it contains {used[0]}); {continued}name another "
            "folder with --output."
        )


def remove_preparation(output: str) -> None:
    """Remove the files of a preparation that was stopped, :data:`PLAN` first and :data:`LEDGER`
    last, so that any part of them is still known as such.
    """
    for pattern in PREPARED:
        for path in glob.glob(os.path.join(glob.escape(output), pattern)):
            with contextlib.suppress(OSError):
                os.remove(path)
    with contextlib.suppress(OSError):
        remove_output(os.path.join(output, "data"))


@contextlib.contextmanager
def removed_on_error(output: str) -> Iterator[None]:
    """Remove what was written for a training that was refused or stopped before it began. The
    caller has the lock of the folder, so that nobody else has written to it.
    """
    try:
        yield
    except BaseException:  # Ctrl-C as well
        if not os.path.exists(os.path.join(output, "config.yaml")):  # which a training writes first
            remove_preparation(output)
        raise
