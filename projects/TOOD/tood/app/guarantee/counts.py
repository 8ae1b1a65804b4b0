"""Count the objects in all images of a folder: the detector's counts, corrected by an audit of some
images that were drawn at random.
"""

import dataclasses
import functools
import json
import math
import os
from collections import Counter
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from tabulate import tabulate

from tood.app.check import check_part, list_paths
from tood.app.convert.detections import check_dataset, write_detections
from tood.app.convert.door import Part, UnknownFormatError, read_data
from tood.app.guarantee.totals import FEW, Total, choose_sample, estimate_total
from tood.app.predict import Run
from tood.app.trained import find_trained
from tood.checkpoint.identity import IDENTITY
from tood.data.inputs import find_files, is_video, resolve_folder
from tood.inference.predictor import Predictor
from tood.inference.thresholds import find_difference, find_weights_hash, parse_threshold
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError, shorten
from tood.utils.files import choose_output, compute_sha256
from tood.utils.reading import MAX_TEXT, guard_reading, read_regular
from tood.utils.suggest import suggest

AUDIT = "audit.json"
ALL = "all classes"


@dataclasses.dataclass(frozen=True)
class Counts:
    """The objects of all images; ``str(counts)`` is a table."""

    num_images: int
    detected: Dict[str, int]  # of the detector, by class
    totals: Dict[str, Total]  # corrected, by class, and of all classes; empty without an audit
    output: str  # folder of the images to correct; "" without them
    text: str = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.text


class Listed(NamedTuple):
    """An image of the folder."""

    file: str  # relative to the folder of all images, with "/"
    sha256: str
    counts: List[int]  # (K,), of the detector


class Audit(NamedTuple):
    """The content of an audit.json."""

    path: str
    weights: str  # hash
    class_names: List[str]
    seed: int
    images: List[Listed]
    chosen: List[int]  # indices
    settings: Optional[Dict]  # that the counts depend on; None if an earlier version wrote it


@accept_paths("model", "images", "output", "audited", "config")
def count(
    model: str,
    images: Union[str, Sequence[str]],
    *,
    audit: int = 0,
    output: str = "",
    save_as: str = "coco",
    seed: int = 0,
    audited: str = "",
    most: int = 0,
    score_threshold: Union[None, float, str] = None,
    overwrite: bool = False,
    config: str = "",
    options: Sequence[str] = (),
) -> Counts:
    """Count the objects of each class in images, and correct the total by a sample::

        print(tood.count("output/mine", "photos/"))  # the detector's
        tood.count("output/mine", "photos/", audit=30, save_as="yolo", output="audit")
        print(tood.count("output/mine", "photos/", audited="audit"))  # after it was corrected

    Args:
        model: an output folder, a checkpoint, or the name of a released model.
        images: files, folders, patterns; "FOLDER/**" includes sub-folders.
        audit: number of images to draw at random. What is found in them is written as a data set,
            to be corrected in an annotation program, with the counts of all images in audit.json.
        output: folder of that data set; default: "audit" beside the checkpoint.
        save_as: its format, "coco", "yolo", "voc" or "labelme".
        seed: random seed of the drawing.
        audited: folder of the drawn images, corrected.
        most: objects of a class that an image may have, for the Bernstein bound; default, and at
            least: the most that detector and audit have counted.
        score_threshold: threshold of the detections that are counted, as in ``tood.predict``.
        overwrite: replace an earlier audit.
        config: file of the model's config; default: config.yaml beside the checkpoint.
        options: overrides of the config, keys and values in turn.

    Raises:
        UserError: for a file or a value that cannot be used, images that cannot be read, images
            that are not those of the audit, and an audit of other images than were drawn.
    """
    _check_flags(audit, audited, most, seed)
    of_audit = {"output": output, "save-as": save_as != "coco", "seed": seed}
    of_audit.update(overwrite=overwrite)
    others = {"score-threshold": score_threshold, "most": most}
    _refuse_unused(audit, audited, of_audit, others, options[::2])
    trained, threshold = find_trained(model, config), parse_threshold(score_threshold)
    found, note = find_files(images)
    paths = _name_files(found, audit)
    opts = trained.options(options, writes=False)
    build = functools.partial(Predictor, trained.config_file, opts=opts, score_threshold=threshold)
    if audited:
        return _correct(build, paths, audited, most)
    if audit:
        output = choose_output(output, os.path.join(trained.folder, "audit"), overwrite)
        check_dataset(save_as, found, output, overwrite)
    run = _detect(build(), paths)
    detected = dict(zip(run.predictor.class_names, _count_all(run).sum(axis=0).tolist()))
    text = run.predictor.thresholds.add_note(_format_detected(run, detected) + note)
    if audit:
        chosen = choose_sample(len(paths), audit, seed)
        _write_audit(run, list(paths), chosen, seed, save_as, output, overwrite)
    return Counts(
        len(paths), detected, {}, output if audit else "", text + _say_next(audit, output)
    )


def _check_flags(audit: int, audited: str, most: int, seed: int) -> None:
    if audit and audited:
        raise UserError("--audit draws images, and --audited reads them back; omit one of them.")
    if audit < 0 or audit == 1:
        raise UserError(f"--audit is {audit}; an interval needs at least 2 images.")
    if most < 0:
        raise UserError(f"--most is {most}; it must be a number of objects.")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is {seed}; it must be from 0 to {2**32 - 1}.")


def _refuse_unused(
    audit: int, audited: str, of_audit: Dict, others: Dict, keys: Sequence[str]
) -> None:
    """Raise UserError for flags and keys that would have no effect."""
    if audited and "MODEL.TOOD.SCORE_THRESH_TEST" in keys:
        raise UserError(
            f"MODEL.TOOD.SCORE_THRESH_TEST is typed with --audited, but {AUDIT} in {audited} has "
            "counted already; omit it, or draw again with --audit."
        )
    typed = [name for name, value in {**of_audit, **others}.items() if value not in (None, "", 0)]
    for name in typed:
        if audited and name != "most":
            raise UserError(
                f"--{name} is typed with --audited, but {AUDIT} in {audited} decides it; omit it, "
                "or draw again with --audit."
            )
        if name in of_audit and not audit:
            raise UserError(f"--{name} is of the images that --audit draws; omit it, or add that.")
        if name == "most" and not audited:
            raise UserError("--most is of the interval by --audited; omit it, or add that.")


def _name_files(paths: Sequence[str], audit: int) -> Dict[str, str]:
    """Return {name relative to the common folder: path}, in the order of the names.

    Raises:
        UserError: for videos, and fewer images than are to be drawn.
    """
    for path in filter(is_video, paths):
        raise UserError(f"{path} is a video; name images, which can be drawn at random.")
    if audit > len(paths):
        raise UserError(f"--audit is {audit}, but there are {len(paths)} images; name fewer.")
    real = [resolve_folder(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in real])
    names = [os.path.relpath(path, root).replace(os.sep, "/") for path in real]
    return dict(sorted(zip(names, paths)))


def _detect(predictor: Predictor, paths: Dict[str, str]) -> Run:
    run = Run(predictor, with_sheet=False, keep_all=False)
    run.detect(dict.fromkeys(paths.values(), ""))
    if run.skipped:
        raise UserError(
            f"{run.skipped} of the images cannot be read, as warned above, and their objects would "
            "be missing in the total; remove them, or get them again."
        )
    return run


def _say_next(audit: int, output: str) -> str:
    if not audit:
        return "\nThese are the detector's counts; --audit 30 draws images to correct them by."
    return (
        f"\n{audit} images that were drawn at random are in {output}. Correct their labels in an "
        "annotation program, then use the command with --audited in the place of --audit."
    )


def _count_all(run: Run) -> np.ndarray:
    """Return the detector's counts (N, K)."""
    number = len(run.predictor.class_names)
    rows = [np.bincount(x.instances.pred_classes.numpy(), minlength=number) for x in run.results]
    return np.array(rows, dtype=np.int64).reshape(-1, number)


def _format_detected(run: Run, detected: Dict[str, int]) -> str:
    rows = [*detected.items(), (ALL, sum(detected.values()))]
    table = tabulate(rows, ("", "detected"), colalign=("left", "right"))
    return f"{len(run.results)} images, detections {run.predictor.thresholds.text}:\n{table}"


def _write_audit(
    run: Run,
    names: Sequence[str],
    chosen: Sequence[int],
    seed: int,
    save_as: str,
    output: str,
    overwrite: bool,
) -> None:
    """Write the drawn images with their detections, and the account of all images."""
    drawn = [run.results[i] for i in chosen]
    rows = zip(names, run.results, _count_all(run).tolist())
    content = {
        IDENTITY: run.predictor.identity,
        "seed": seed,
        "class_names": run.predictor.class_names,
        "settings": run.predictor.settings,
        "score_thresholds": run.predictor.thresholds.values,
        "chosen": chosen,
        "images": [
            {"file": name, "sha256": compute_sha256(x.path), "counts": counts}
            for name, x, counts in rows
        ],
    }
    write_detections(drawn, save_as, output, run.predictor, overwrite, {AUDIT: content})


def read_audit(folder: str) -> Audit:
    """Return the account of an audit.

    Raises:
        UserError: for a folder without one, or one whose images were not drawn with its seed.
    """
    path = os.path.join(folder if os.path.isdir(folder) else os.path.dirname(folder), AUDIT)
    if not os.path.exists(path):
        raise UserError(
            f"{path} does not exist; tood count --audit writes it: copy it to the corrected images."
        )
    with guard_reading(path, "copy it again from the folder that tood count --audit wrote"):
        content = json.loads(read_regular(path, MAX_TEXT))
        names = [str(name) for name in content["class_names"]]
        images = [
            Listed(str(x["file"]), str(x["sha256"]), [int(i) for i in x["counts"]])
            for x in content["images"]
        ]
        if any(len(x.counts) != len(names) or min(x.counts) < 0 for x in images):
            raise ValueError("an image has no count of each class")
        chosen, seed = [int(i) for i in content["chosen"]], int(content["seed"])
        weights, settings = find_weights_hash(content), content.get("settings")
        if not isinstance(settings, (dict, type(None))):
            raise ValueError("its settings are no values by keys")
    if len(chosen) < 2 or chosen != choose_sample(len(images), len(chosen), seed):
        raise UserError(
            f"The images that {path} calls chosen are not those that its seed {seed} draws; an "
            "interval needs images that were drawn at random: use tood count --audit again."
        )
    return Audit(path, weights, names, seed, images, chosen, settings)


def _correct(
    build: Callable[[], Predictor], paths: Dict[str, str], audited: str, most: int
) -> Counts:
    """Return the totals by an audit, after checking that its images and its model are these."""
    audit = read_audit(audited)
    _check_images(audit, paths)
    true = _read_true(audit, audited)
    _check_model(audit, build())
    detected = np.array([x.counts for x in audit.images])
    columns = [*zip(audit.class_names, detected.T, true.T)]
    totals = {
        name: estimate_total(name, d, audit.chosen, t, most=most, seed=audit.seed)
        for name, d, t in columns
    }
    of_all = sum(x.most for x in totals.values()) if most else 0  # an image may have all classes
    totals[ALL] = estimate_total(
        *(ALL, detected.sum(axis=1), audit.chosen, true.sum(axis=1)), most=of_all, seed=audit.seed
    )
    sums = dict(zip(audit.class_names, detected.sum(axis=0).tolist()))
    text = _format_totals(audit, totals, bool((true == detected[audit.chosen]).all()))
    return Counts(len(paths), sums, totals, "", text + _list_emptied(audit, true))


def _check_model(audit: Audit, predictor: Predictor) -> None:
    """
    Raises:
        UserError: for other weights or options than those of the counts.
    """
    if audit.weights != predictor.describe().compute_hash():
        raise UserError(
            f"{audit.path} has counts of other weights than {predictor.options.weights}; name the "
            "model of these counts."
        )
    known = predictor.settings if audit.settings is None else audit.settings
    different = find_difference(predictor.settings, known)
    if different:
        raise UserError(
            f"{audit.path} has counts with {different}; use the same value, or draw again with "
            "--audit."
        )


def _list_emptied(audit: Audit, true: np.ndarray) -> str:
    """Return a sentence on images of which the audit has removed all objects, or lost the file of
    their labels: in YOLO's format, both look the same.
    """
    rows = zip((audit.images[i] for i in audit.chosen), true)
    names = [x.file for x, counts in rows if sum(x.counts) and not counts.sum()]
    if not names:
        return ""
    return (
        f"\nThe audit has no object in {len(names)} of the images that the detector finds some in: "
        f"{shorten(', '.join(names))}. If their labels were lost, write them again."
    )


def _check_images(audit: Audit, paths: Dict[str, str]) -> None:
    """
    Raises:
        UserError: for images that are not those that the audit was drawn from.
    """
    known = {x.file: x.sha256 for x in audit.images}
    missing, new = known.keys() - paths.keys(), paths.keys() - known.keys()
    changed = [x for x in known.keys() & paths.keys() if compute_sha256(paths[x]) != known[x]]
    for words, found in (("are missing", missing), ("are new", new), ("have changed", changed)):
        if found:
            raise UserError(
                f"{len(found)} images {words} since {audit.path} was written, as {min(found)}; "
                "name the images that it was drawn from, or draw again with --audit."
            )


def _read_true(audit: Audit, audited: str) -> np.ndarray:
    """Return the true counts (n, K) of the drawn images, which are recognized by their content.

    Raises:
        UserError: for images that were not drawn or have changed, drawn ones that are missing,
            unknown classes, and crowds.
    """
    found: Dict[str, List[List[int]]] = {}
    paths = {}
    for part in _read_parts(audited):
        checked = check_part(part, to_train=False)
        checked.refuse_errors()
        rows = _count_objects(checked.dataset.content, audit.class_names, audited)
        for path, row in zip(list_paths(checked.dataset), rows):
            sha256 = compute_sha256(path)
            found.setdefault(sha256, []).append(row)
            paths[sha256] = path
    drawn = Counter(audit.images[i].sha256 for i in audit.chosen)
    given = Counter({sha256: len(rows) for sha256, rows in found.items()})
    missing = drawn - given
    for sha256 in given - drawn:
        raise UserError(
            f"{paths[sha256]} is not one of the images that were drawn, or its file has changed; "
            "an interval needs exactly those: remove the others."
        )
    if missing:
        name = next(x.file for x in audit.images if x.sha256 in missing)
        raise UserError(
            f"{sum(missing.values())} of the {len(audit.chosen)} drawn images are missing in "
            f"{audited}, as {name}; an image without objects belongs to them as well."
        )
    return np.array([found[audit.images[i].sha256].pop() for i in audit.chosen])


def _read_parts(audited: str) -> List[Part]:
    try:
        return list(read_data(audited, keep_difficult=True).parts.values())
    except UnknownFormatError as error:
        raise UserError(
            f"{error.sentence()} If none of the drawn images has an object, draw them with "
            "--save-as coco, which can say so."
        ) from error


def _count_objects(content: Dict, class_names: Sequence[str], source: str) -> List[List[int]]:
    """Return the number of objects of each class in each image of some annotations."""
    names = {x["id"]: x["name"] for x in content["categories"]}
    rows = {image["id"]: [0] * len(class_names) for image in content["images"]}
    for a in content["annotations"]:
        name = names[a["category_id"]]
        if name not in class_names:
            hint = suggest(name, class_names) or f"; its classes are {', '.join(class_names)}."
            raise UserError(f"{source} has objects of {name!r}, not a class of the model{hint}")
        if a["iscrowd"]:
            raise UserError(
                f"{source} has a crowd of {name!r}, which is not a number of objects; annotate "
                "each of them."
            )
        rows[a["image_id"]][class_names.index(name)] += 1
    return list(rows.values())


def _format_totals(audit: Audit, totals: Dict[str, Total], is_same: bool) -> str:
    rows = [
        (x.name, x.detected, round(x.estimate), *map(_format_ends, (x.bootstrap, x.bernstein)))
        for x in totals.values()
    ]
    heads = ("", "detected", "total", "95 % (bootstrap-t)", "95 % (Bernstein)")
    most = ", ".join(f"{x.most} {x.name}" for x in totals.values())
    lines = [
        f"{len(audit.images)} images, of which {len(audit.chosen)} were audited (seed "
        f"{audit.seed}):",
        tabulate(rows, heads, colalign=("left", *["right"] * 4)),
        f"The Bernstein bound is valid for any images, if none has more than {most} (--most).",
    ]
    few = [f"{x.num_differing} {x.name}" for x in totals.values() if x.num_differing < FEW]
    if is_same:
        lines.append(
            "No audited count differs from the detector's: were the labels corrected? If they "
            "were, the bootstrap has no interval, and the Bernstein bound is the one to use."
        )
    elif few:
        lines.append(
            f"Counts differ from the detector's in only a few audited images ({', '.join(few)}): "
            "the bootstrap interval may be too short; audit more images, or use the Bernstein "
            "bound."
        )
    return "\n".join(lines)


def _format_ends(ends: Tuple[float, float]) -> str:
    if math.isnan(ends[0]):
        return "none: all differences are equal"
    return f"{math.floor(ends[0])} to {math.ceil(ends[1])}"
