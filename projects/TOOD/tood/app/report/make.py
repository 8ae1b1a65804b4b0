"""Write a report on a model: one page, report.html, that opens anywhere.

The content of the page is in report.json as well, and its plots are PNG files beside it;
docs/report.md explains them. :data:`SECTIONS` lists the functions that compute the sections.
"""

import datetime
import math
import os
import platform
import shlex
from dataclasses import dataclass, field
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import detectron2
import numpy as np
import torch

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.app.plan.advice import list_advice
from tood.app.report import gallery, page, plots
from tood.app.report.analysis import (
    Analysis,
    analyze,
    compare_analyses,
    explain_miss,
    summarize_analysis,
)
from tood.app.report.reasons import FOUND, find_reason, make_objects
from tood.app.report.subject import Subject, examine, read_data, read_results
from tood.app.report.suspects import list_suspects
from tood.app.trained import find_trained, name_data, read_predictor
from tood.checkpoint.identity import (
    IDENTITY,
    check_same_data,
    hash_data,
    make_identity,
    read_identity,
    write_identity,
)
from tood.checkpoint.locate import WEIGHTS
from tood.data.images import IMAGE_ERRORS
from tood.data.tiles import RecentImages
from tood.inference.predictor import Predictor
from tood.inference.views import find_view
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError
from tood.utils.files import (
    check_folder,
    choose_output,
    encode_json,
    refuse_existing,
    write_json,
    write_whole,
)

PAGE, SUMMARY, DETECTIONS = "report.html", "report.json", "detections.json"
SUSPECTS = (
    "Where detector and annotations disagree most. Either may be wrong; docs/report.md says how "
    "often it was the annotations."
)


@dataclass(frozen=True)
class Report:
    """A report that was written; ``str(report)`` is one sentence."""

    folder: str
    summary: Dict = field(repr=False)  # content of report.json
    detections: List[Dict] = field(repr=False)  # in COCO's format

    @property
    def page(self) -> str:
        """Path of the page."""
        return os.path.join(self.folder, PAGE)

    @property
    def metrics(self) -> Dict[str, float]:
        """COCO's metrics in percent, "AP", "AP50" and so on; NaN if not defined."""
        return {name: x["value"] for name, x in self.summary["metrics"].items()}

    def __str__(self) -> str:
        AP = self.summary["metrics"]["AP"]
        if math.isnan(AP["value"]):
            return f"{self.page}: there are no objects to find."
        text = f"{self.page}: AP {AP['value']:.1f}, "
        if "note" in AP:
            return f"{text}without an interval, because {AP['note']}."
        return f"{text}{AP['low']:.1f} to {AP['high']:.1f} by the choice of the images."


class Material(NamedTuple):
    """Everything that a section may be computed from."""

    subject: Subject
    analysis: Analysis
    other: Optional[Analysis]  # of the detections to compare with
    compared: str  # their file


# A section's name in report.json and in the template, and its content, plain values.
SECTIONS: Dict[str, Callable[[Material], object]] = {
    "alignment": lambda x: x.subject.alignment,
    "positives": lambda x: x.subject.positives,
    "guarantee": lambda x: x.subject.guarantee,
    "suspects": lambda x: list_suspects(x.analysis.table, x.analysis.pairs, x.analysis.thresholds),
    "comparison": lambda x: compare_analyses(x.analysis, x.other) if x.other else [],
    "compared": lambda x: x.compared,
    "data_check": lambda x: x.subject.notes,
}


@accept_paths("model", "val_data", "results", "compare", "output", "config")
def report(
    model: str = "",
    *,
    config: str = "",
    results: str = "",
    val_data: str = "",
    compare: str = "",
    output: str = "",
    overwrite: bool = False,
    options: Sequence[str] = (),
) -> Optional[Report]:
    """Report on a trained model, or on the results of any detector in COCO's format::

        tood.report("output/mine").metrics["AP"]
        tood.report(results="theirs.json", val_data="val.json:images", output="report")

    Args:
        model: an output folder, a checkpoint, or the name of a released model.
        config: file of the model's config; default: config.yaml beside the checkpoint.
        results: a JSON file of detections, instead of a model.
        val_data: the data set, a folder or ANNOTATIONS.json:IMAGES; default: the config's.
        compare: a JSON file of the detections of another model on the same images.
        output: folder of the report; default: "report" in the model's output folder, with a number
            if it exists ("report-2"). Thresholds are read from "report".
        overwrite: replace a report that already exists.
        options: overrides of the config, keys and values in turn.

    Returns:
        the report; None in all processes but the main one.

    Raises:
        UserError: for a file or a value that cannot be used, and a report that already exists.
    """
    command = _format_command({**locals()})
    if bool(model) == bool(results):
        raise UserError("Name either a model, or a file of detections with --results.")
    if results and not (val_data and output):
        raise UserError("--results needs --val-data and --output.")
    if results and (config or options):
        raise UserError("--results needs no config; omit --config-file and options of the config.")
    if results:
        check_output(output, overwrite)
        content, image_root, notes = read_data(val_data)
        name, found = os.path.basename(results), read_results(results)
        weights = read_identity(results).get("weights", "")
        data = name_data(val_data) or val_data
        subject = Subject(name, content, found, image_root, notes, data, weights)
        return _write_report(subject, output, command, compare, results)
    trained = find_trained(model, config)
    predictor, checked = read_predictor(trained, val_data, options)
    output = choose_output(output, os.path.join(predictor.options.output_dir, "report"), overwrite)
    check_output(output, overwrite)
    notes = [str(x) for x in checked]
    return report_on(
        predictor, output=output, command=command, notes=notes, overwrite=overwrite, compare=compare
    )


def report_on(
    predictor: Predictor,
    *,
    output: str,
    command: str = "",
    detections: Optional[List[Dict]] = None,
    notes: Sequence[str] = (),
    overwrite: bool = False,
    compare: str = "",
    read_image: Optional[Callable[[str], np.ndarray]] = None,
) -> Optional[Report]:
    """Report on a model that is in memory, from one pass over the validation images of its config,
    which are registered; all processes call it. Drawings read some of the images once more.

    Args:
        output: folder of the report.
        command: shown on the page.
        detections: in COCO's format, instead of a pass; then the page lacks alignment and
            positives.
        notes: notes on the data, shown on the page.
        overwrite, compare: see :func:`report`.
        read_image: returns the pixels (H, W, 3) uint8, RGB, of a path; default: a cache of the
            most recent images.

    Returns:
        the report; None in all processes but the main one.

    Raises:
        UserError: as :func:`report` does.
    """
    check_output(output, overwrite)
    subject = examine(predictor, detections, notes)
    if subject is None:  # not the main process
        return None
    if read_image is None:
        read_image = RecentImages(max_images=64, bit_depth=predictor.options.bit_depth).read
    return _write_report(subject, output, command, compare, read_image=read_image)


def _format_command(arguments: Dict) -> str:
    model, options = arguments.pop("model"), arguments.pop("options")
    words = ["tood", "report", model] if model else ["tood", "report"]
    for name, value in arguments.items():
        flag = "--config-file" if name == "config" else f"--{name.replace('_', '-')}"
        if value:
            words += [flag] if value is True else [flag, value]
    return shlex.join(map(str, [*words, *options]))


def check_output(folder: str, overwrite: bool) -> None:
    """
    Raises:
        UserError: for a folder that cannot be written to, or that contains one of a report's files.
    """
    check_folder(folder, "--output")
    refuse_existing(folder, (PAGE, SUMMARY, DETECTIONS, *plots.NAMES), overwrite)


def _write_report(
    subject: Subject,
    folder: str,
    command: str,
    compare: str,
    source: str = "",
    read_image: Optional[Callable[[str], np.ndarray]] = None,
) -> Report:
    for path in filter(None, (source, compare)):
        unknown = check_same_data(path, subject.content)
        subject = subject._replace(notes=[*subject.notes, *unknown])
    analysis = analyze(subject.content, subject.detections, source or subject.name)
    other = analyze(subject.content, read_results(compare), compare) if compare else None
    material = Material(subject, analysis, other, compare)
    summary = summarize_analysis(analysis)
    sections = _compute_sections(material, summary)
    read_image = read_image or RecentImages(max_images=64).read
    facts = page.Facts(
        title=f"{subject.data}, {datetime.date.today():%Y-%m-%d}",
        name=subject.name,
        command=command,
        versions=_list_versions(),
        plots={**plots.draw_plots(summary, analysis.table.class_names), **subject.plots},
        galleries=_draw_galleries(material, {**summary, **sections}, read_image),
        sections=sections,
    )
    hashes = {"weights": subject.weights, "data": hash_data(subject.content)}
    summary = {**summary, **sections, "command": command, "versions": facts.versions}
    summary[IDENTITY] = make_identity(**hashes)
    html = page.render(summary, facts)
    check_folder(folder, "--output")
    for name, png in facts.plots.items():
        write_whole(os.path.join(folder, name), png)
    _write_detections(subject.detections, os.path.join(folder, DETECTIONS), hashes)
    write_json(summary, os.path.join(folder, SUMMARY))
    # The page is the last one: if it exists, so do the other files.
    write_whole(os.path.join(folder, PAGE), html.encode())
    return Report(folder, summary, subject.detections)


def _list_versions() -> Dict[str, str]:
    return {
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "Detectron2": detectron2.__version__,
    }


def _compute_sections(material: Material, summary: Dict) -> Dict:
    sections = {name: compute(material) for name, compute in SECTIONS.items()}
    subject = material.subject
    advice = list_advice(_name_model(subject), subject.history, {**summary, **sections})
    return {**sections, "advice": [x._asdict() for x in advice]}


def _write_detections(detections: List[Dict], path: str, hashes: Dict[str, str]) -> None:
    # Not by write_json, whose layout takes as long as the rest for a million of them.
    write_whole(path, encode_json(detections).encode())
    write_identity(path, **hashes)


def _draw_galleries(
    material: Material, summary: Dict, read_image: Callable[[str], np.ndarray]
) -> Sequence[page.Gallery]:
    subject, analysis = material.subject, material.analysis

    def read(i: int) -> Optional[np.ndarray]:
        path = os.path.join(subject.image_root, analysis.table.file_names[i])
        try:
            return read_image(path)
        except IMAGE_ERRORS:
            return None

    def explain(g: int, image: np.ndarray) -> str:
        if subject.predictor is None:
            return explain_miss(analysis, g)
        return _find_sentence(subject.predictor, analysis, g, image)

    worst = gallery.draw_worst_images(analysis, summary["worst_images"], read)
    missed = gallery.draw_missed_objects(analysis, read, explain)
    wrong = gallery.draw_false_positives(analysis, read)
    suspects = gallery.draw_suspects(analysis, summary["suspects"], read)
    return (
        page.Gallery("The worst images", "Without them, AP would be higher.", worst),
        page.Gallery("Missed objects", "The largest, and why.", missed),
        page.Gallery("Wrong detections", "The surest.", wrong),
        page.Gallery("Suspect labels", SUSPECTS, suspects, "suspects"),
    )


def _name_model(subject: Subject) -> str:
    """Return the model as commands name it: the folder of a training, if these are its weights."""
    if subject.predictor is None:
        return ""
    folder, name = os.path.split(subject.name.rpartition("://")[2])
    return folder if folder and name in WEIGHTS[:1] else subject.name.rpartition("://")[2]


def _find_sentence(predictor: Predictor, analysis: Analysis, g: int, image: np.ndarray) -> str:
    """Say why an object was missed, from the model itself.

    Args:
        image: (H, W, 3) uint8, RGB, which contains the object.
    """
    table, names = analysis.table, predictor.class_names
    view = find_view(predictor, image[:, :, ::-1], table.gt_boxes[g].tolist())
    # The model may have its classes in another order than the data.
    k = [names.index(x) if x in names else j for j, x in enumerate(table.class_names)]
    mine = np.flatnonzero((table.gt_images == table.gt_images[g]) & ~table.gt_crowd)
    objects = make_objects(
        table.gt_boxes[mine].tolist(),
        [k[c] for c in table.gt_classes[mine]],
        int(np.flatnonzero(mine == g)[0]),
        *(view.scale, (view.x, view.y)),
    )
    threshold = float(analysis.thresholds[table.gt_classes[g]])
    reason = find_reason(predictor.model, view.image, objects, names, threshold)
    # Rounding may find an object that the evaluation did not.
    return reason.sentence if reason.cause != FOUND else explain_miss(analysis, g)
