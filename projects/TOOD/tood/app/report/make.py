"""Say what is good and bad about a model: one page, report.html, that opens anywhere::

    tood report output/mine
    python tools/report.py --config-file output/mine/config.yaml --output output/mine/report \\
        MODEL.WEIGHTS output/mine/model_best.pth
    python tools/report.py --val-data val.json:images --results coco_instances_results.json \\
        --output report
    python tools/report.py --val-data val.json:images --results mine.json --compare theirs.json ...

--results and --compare take any detector's results in COCO's format. What the page says is in
report.json as well, its plots are PNG files beside it; docs/report.md explains them.
"""

import argparse
import contextlib
import io
import json
import math
import os
import platform
import shlex
import sys
import tempfile
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import detectron2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm
from PIL import Image

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.app.plan.rules import STRIDE, choose_input
from tood.app.report import gallery, page, plots
from tood.app.report.analysis import Analysis, analyze, summarize_analysis, why_missed
from tood.app.report.compare import compare
from tood.app.report.reasons import FOUND, explain, objects_of
from tood.app.report.suspects import MISSING, Suspect, as_rows, find_suspects
from tood.config.read import split_options
from tood.data.annotations import read_annotations
from tood.data.check import check_data
from tood.data.datasets import prepare_datasets
from tood.data.entries import parse_own_data
from tood.evaluation.alignment_evaluator import AlignmentEvaluator, summarize
from tood.evaluation.coco import CleanCOCOEvaluator, content_of
from tood.evaluation.positives import count_positives
from tood.inference.predictor import Predictor
from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, run_main
from tood.utils.files import check_folder, write_json, write_whole
from tood.visualization.alignment import draw_scatter

PAGE, SUMMARY = "report.html", "report.json"
RESULTS = "coco_instances_results.json"  # Detectron2's name for the detections
MOST_ASSIGNED = 500  # images or tiles whose objects' positives are counted
NUM_SUSPECTS, LEAST_DOUBT = 30, 0.3
LEGEND = "At the thresholds above."


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0],
        epilog=__doc__.split("::", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", metavar="FILE", help="of a checkpoint; or a model's name")
    parser.add_argument("--results", metavar="JSON", help="detections in COCO's format")
    parser.add_argument("--val-data", metavar="DATA", help="as in train_net.py")
    parser.add_argument("--compare", metavar="JSON", help="detections of another model")
    parser.add_argument("--output", metavar="FOLDER", help="default: report in OUTPUT_DIR")
    parser.add_argument("--overwrite", action="store_true", help="a report that already exists")
    argv, opts = split_options(sys.argv[1:] if argv is None else argv)
    args = parse_arguments(parser, argv)
    args.opts = opts
    args.command = shlex.join(["python", "tools/report.py", *argv, *opts])
    if bool(args.config_file) == bool(args.results):
        raise UserError("Name either --config-file, of a checkpoint, or --results.")
    if args.results and not (args.val_data and args.output):
        raise UserError("--results needs --val-data and --output.")
    return args


class Subject(NamedTuple):
    """Detections of a data set, and what is known beside them."""

    name: str
    content: Dict  # annotations
    detections: List[Dict]
    image_root: str
    notes: List[str]  # of the data check
    alignment: Dict[str, Dict] = {}
    positives: List[Dict] = []  # of objects by size
    plots: Dict[str, bytes] = {}


def main(args):
    predictor = None
    if args.config_file:
        predictor = Predictor(args.config_file, opts=[*args.opts, *data_options(args)])
        args.output = args.output or os.path.join(predictor.options.output_dir, "report")
    check_output(args)
    other = read_results(args.compare) if args.compare else None
    subject = of_checkpoint(predictor) if predictor else of_results(args)
    if not comm.is_main_process():  # of a training by several
        return
    analysis = analyze(subject.content, subject.detections, args.results or subject.name)
    summary = summarize_analysis(analysis)
    comparison = []
    if other is not None:
        comparison = compare(analysis, analyze(subject.content, other, args.compare))
    suspects = as_rows(analysis.table, suspects_of(analysis))
    facts = page.Facts(
        title=f"Report of {subject.name}",
        command=args.command,
        versions=versions(),
        notes=subject.notes,
        plots={**plots.draw_plots(summary, analysis.table.class_names), **subject.plots},
        sections=sections_of(analysis, summary, subject.image_root, predictor),
        alignment=[{"name": name, **row} for name, row in subject.alignment.items()],
        positives=subject.positives,
        suspects=suspects,
        comparison=comparison,
        compared=args.compare or "",
    )
    more = {
        "alignment": subject.alignment,
        "positives": subject.positives,
        "suspects": suspects,
        "comparison": comparison,
        "data_check": subject.notes,
        "command": args.command,
        "versions": facts.versions,
    }
    write(args.output, {**summary, **more}, facts, subject.detections)
    print(sentence_of(summary, os.path.join(args.output, PAGE)))


def data_options(args) -> List[str]:
    """Overrides of the data to evaluate on."""
    return ["DATASETS.TEST", str((args.val_data,))] if args.val_data else []


def suspects_of(analysis: Analysis) -> List[Suspect]:
    """The labels that are worth a look: of missing ones, those that are detected by the
    thresholds.
    """
    found = find_suspects(analysis.table, analysis.pairs, NUM_SUSPECTS)
    least = [float(x) for x in analysis.thresholds]
    worth = [
        x for x in found if x.doubt >= (least[x.class_index] if x.kind == MISSING else LEAST_DOUBT)
    ]
    return worth[:NUM_SUSPECTS]


def check_output(args):
    check_folder(args.output, "--output")
    path = os.path.join(args.output, PAGE)
    if os.path.exists(path) and not args.overwrite:
        raise UserError(f"{path} already exists; name another --output, or --overwrite.")


def of_results(args) -> Subject:
    """Detections that someone else has made."""
    content, image_root, notes = read_data(args.val_data)
    name = os.path.basename(args.results)
    return Subject(name, content, read_results(args.results), image_root, notes)


def read_data(entry: str) -> Tuple[Dict, str, List[str]]:
    """Return annotations, the folder of their images, which need not be there, and what the check
    found.
    """
    own_data = parse_own_data(entry)
    if own_data is None:
        if entry not in DatasetCatalog.list():
            raise UserError(f"There is no data set {entry} (--val-data); name FILE.json:FOLDER.")
        metadata = MetadataCatalog.get(entry)
        return content_of(entry, metadata), metadata.get("image_root", ""), []
    content = read_annotations(*own_data, to_train=True)
    report = check_data(entry, content, choose_input(content, allow_tiles=False), STRIDE)
    if report.errors:
        raise UserError(report.error_sentence())
    return content, own_data.image_root, [str(report)]


def read_results(path: str) -> List[Dict]:
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its name.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, list):
        raise UserError(f"{path} is not a list of detections, COCO's format of results.")
    return content


def of_checkpoint(predictor: Predictor) -> Subject:
    """Detections of a model, which is evaluated."""
    options = predictor.options
    reports = prepare_datasets(options.data, training=False, known_classes=predictor.class_names)
    name = options.data.test[0]
    metadata = MetadataCatalog.get(name)
    with tempfile.TemporaryDirectory() as folder:
        evaluators, alignment = [CleanCOCOEvaluator(name, output_dir=folder)], None
        if not predictor.is_tiled:  # of tiles it is not defined
            alignment = AlignmentEvaluator(name, predictor.model)
            evaluators.append(alignment)
        evaluators = DatasetEvaluators(evaluators)
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            inference_on_dataset(predictor.detector, predictor.build_test_loader(name), evaluators)
        loader = predictor.build_validation_loader(name, MOST_ASSIGNED)
        positives = count_positives(predictor.model, loader)
        path = os.path.join(folder, RESULTS)
        detections = read_results(path) if os.path.isfile(path) else []
    drawn, is_measured = {}, alignment is not None and comm.is_main_process()
    if is_measured and len(alignment.pairs):
        drawn["alignment.png"] = png_of(draw_scatter({"this model": alignment.pairs}))
    records = training_records(options.output_dir)
    if records:
        drawn["training.png"] = plots.draw_training(records)
    return Subject(
        options.weights,
        content_of(name, metadata),
        detections,
        metadata.get("image_root", ""),
        [str(x) for x in reports],
        summarize(alignment.metrics, predictor.class_names) if is_measured else {},
        positives,
        drawn,
    )


def training_records(folder: str) -> List[Dict]:
    """Lines of Detectron2's metrics.json, where there is one."""
    records = []
    with contextlib.suppress(OSError), open(os.path.join(folder, "metrics.json")) as f:
        for line in f:
            with contextlib.suppress(ValueError):  # the last one of a training that was killed
                records.append(json.loads(line))
    return records


def sections_of(
    analysis: Analysis, summary: Dict, image_root: str, predictor: Optional[Predictor]
) -> Sequence[page.Section]:
    def why(g: int) -> str:
        if predictor is None:
            return why_missed(analysis, g)
        return explained(predictor, analysis, image_root, g)

    worst = gallery.worst_images(analysis, summary["worst_images"], image_root)
    missed = gallery.missed_objects(analysis, image_root, why)
    wrong = gallery.false_positives(analysis, image_root)
    return (
        page.Section("The worst images", f"Without them, AP would be higher. {LEGEND}", worst),
        page.Section("Missed objects", f"The largest, and why. {LEGEND}", missed),
        page.Section("Wrong detections", f"The surest. {LEGEND}", wrong),
    )


def explained(predictor: Predictor, analysis: Analysis, image_root: str, g: int) -> str:
    """Why an object was missed, from the model itself."""
    table, names = analysis.table, predictor.class_names
    i = table.gt_images[g]
    path = os.path.join(image_root, table.file_names[i])
    view = predictor.view_of(path, table.gt_boxes[g].tolist())
    # The model may have its classes in another order than the data.
    k = [names.index(x) if x in names else j for j, x in enumerate(table.class_names)]
    mine = np.flatnonzero((table.gt_images == i) & ~table.gt_crowd)
    objects = objects_of(
        table.gt_boxes[mine].tolist(),
        [k[c] for c in table.gt_classes[mine]],
        int(np.flatnonzero(mine == g)[0]),
        *(view.scale, (view.x, view.y)),
    )
    threshold = float(analysis.thresholds[table.gt_classes[g]])
    found = explain(predictor.model, view.image, objects, names, threshold)
    # Rounding may find what the evaluation did not.
    return found.sentence if found.cause != FOUND else why_missed(analysis, g)


def write(folder: str, content: Dict, facts: page.Facts, detections: List[Dict]) -> None:
    """Write the page last: where it is, the other files are."""
    html = page.render(content, facts)
    os.makedirs(folder, exist_ok=True)
    for name, png in facts.plots.items():
        write_whole(os.path.join(folder, name), png)
    # Not by write_json, whose layout takes as long as the rest for a million of them.
    write_whole(os.path.join(folder, "detections.json"), json.dumps(detections).encode())
    write_json(content, os.path.join(folder, SUMMARY))
    write_whole(os.path.join(folder, PAGE), html.encode())


def sentence_of(summary: Dict, path: str) -> str:
    AP = summary["metrics"]["AP"]
    if math.isnan(AP["value"]):
        return f"{path}: there are no objects to find."
    return (
        f"{path}: AP {AP['value']:.1f}, {AP['low']:.1f} to {AP['high']:.1f} by the choice of the "
        "images."
    )


def versions() -> Dict[str, str]:
    return {
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "Detectron2": detectron2.__version__,
    }


def png_of(image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def cli(argv=None):
    run_main(lambda: main(parse_args(argv)))
