"""Train a detector on a folder of photographs with boxes, by settings that follow from the data: a
validation set, the size of the images, the length of the training, the images per step.
"""

import dataclasses
import logging
import os
import shlex
import textwrap
from typing import Dict, Optional, Sequence, Union

from tood.app import draw
from tood.app.check import list_names
from tood.app.convert.door import refuse_missing
from tood.app.plan.advice import Advice, format_advice, list_advice
from tood.app.plan.choose import Plan, make_plan
from tood.app.plan.data import TrainingData, read_training_data, write_training_data
from tood.app.plan.duration import estimate_duration, warn_if_short
from tood.app.plan.history import read_history
from tood.app.plan.resume import applied, describe, read_changes
from tood.app.plan.state import (
    PLAN,
    Wishes,
    complete_wishes,
    find_output,
    is_ready,
    list_options,
    locked_output,
    read_begun,
    refuse_used,
    remove_preparation,
    removed_on_error,
)
from tood.app.plan.table import make_table
from tood.app.report.make import report_on
from tood.app.trained import Trained, find_trained, load, name_output, read_records
from tood.checkpoint.checkpointer import Checkpointer
from tood.config.read import load_config
from tood.data.datasets import prepare_datasets
from tood.data.tiles import RecentImages
from tood.engine.launch import place_from_environment
from tood.engine.train import Run, check_num_gpus, start
from tood.inference.predictor import Predictor
from tood.inference.thresholds import FROM_CONFIG
from tood.utils.arguments import accept_paths
from tood.utils.errors import WIDTH, UserError, format_reason
from tood.utils.files import refuse_file, write_whole
from tood.utils.lock import refuse_locked
from tood.utils.signals import mark_resumable

logger = logging.getLogger("tood")

NUM_DRAWN = 8
HEAD = (  # of the plan
    "# What tood train has chosen. To change it: edit a copy, then\n"
    "#   python train_net.py --config-file COPY OUTPUT_DIR output/another\n"
)
OUTPUT = "OUTPUT_DIR"
NOT_WRITTEN = "Nothing was written (--dry-run)."


@accept_paths("data", "val_data", "output", "config")
def train(
    data: str,
    *,
    val_data: Union[None, str, Sequence[str]] = None,
    output: str = "",
    image_size: Optional[int] = None,
    images_per_step: Optional[int] = None,
    epochs: Optional[float] = None,
    device: str = "",
    lr: Optional[float] = None,
    model: str = "",
    seed: Optional[int] = None,
    config: str = "",
    val_share: Optional[float] = None,
    group: str = "",
    calibration_share: Optional[float] = None,
    resume: bool = False,
    dry_run: bool = False,
    report: bool = True,
    num_gpus: int = 1,
    options: Sequence[str] = (),
) -> Trained:
    """Train a detector, evaluate it, draw predictions and write a report.

    Settings that are not given are chosen from the data; they are printed as a table, and written
    to the output folder as a config that train_net.py accepts as well.

    Args:
        data: a folder, FOLDER:PART or a file, in any format that ``tood.convert`` reads.
        val_data: other data to validate on; default: the part "val", or one that is split off.
        output: folder; default: output/ and the name of the data, with a number if it has been
            used ("output/cells-2").
        image_size: shorter side of images or tiles for the network, pixels.
        images_per_step: total batch size of all processes (``--batch``).
        epochs: passes over the training images.
        device: "cpu" or "cuda"; default: a GPU, if there is one.
        lr: learning rate.
        model: "N", "N_P2", "Pico", "S", "R18" or "R50"; docs/backbones.md compares them.
        seed: random seed of the initial weights and the order of images; default: another in each
            run.
        config: a config file, or a name of the project's, of which epochs and images_per_step
            change the schedule alone.
        val_share: share of the images to validate on, if it is split off; default: 0.2.
        group: regular expression; images whose names share its match stay on one side.
        calibration_share: share of the images that are drawn at random before, and neither trained
            nor validated on: ``tood.guarantee`` finds a threshold from them. Default: none.
        resume: continue the training in the output folder (by default, that of the highest number
            on these data), or begin it if it has not begun. Other
            data and other values of the parameters above are refused; other options apply from
            there on, or are refused.
        dry_run: return what would be done; nothing is written.
        report: write report/report.html on the best weights.
        num_gpus: number of GPUs of this machine; 1, the default, is the CPU on a machine without
            any.
        options: KEY, VALUE, ... of the config.

    Returns:
        the folder, the best weights, their metrics in percent, and the report.

    Raises:
        UserError: for data, values or a folder that cannot be used.

    Example::

        trained = tood.train("photos/", epochs=20)
        print(trained.metrics["AP"], trained.report)
    """
    if place_from_environment(os.environ) is not None:
        raise UserError(
            "tood train starts its processes itself: use --num-gpus, or torchrun with train_net.py."
        )
    check_num_gpus(num_gpus)
    is_typed, output = bool(output or _read_typed(options)), choose_output(data, output, options)
    flags = dict(image_size=image_size, device=device, lr=lr, seed=seed)
    wishes = Wishes(
        *(data, list_names(val_data), val_share, group, config, epochs, images_per_step, model),
        *(calibration_share, list_options(options, **flags)),
    )
    run = Run(resume=resume, num_gpus=num_gpus, is_locked=True, is_reported=report)
    if dry_run:
        output = output if is_typed else find_output(output, data, resume=resume)
        return Trained("", "", output, plan=f"{_describe(wishes, run, output)}\n{NOT_WRITTEN}")
    # Before anything in the folder is judged.
    with locked_output(output, data, is_typed=is_typed, resume=resume) as output:
        _write_to(output, run, data)
        return _train(wishes, run, output)


def _write_to(output: str, run: Run, data: str) -> None:
    """Print the folder in use, and pass it to the run, if there are data for it."""
    if not run.resume:
        refuse_missing(data)
    is_continued = run.resume and is_ready(output)
    print(f"{'Continuing the training in' if is_continued else 'Output:'} {output}", flush=True)
    run.config_file = os.path.join(output, PLAN)
    run.opts = [OUTPUT, output]  # all else is in the plan
    run.shows_progress = True


def _describe(wishes: Wishes, run: Run, output: str) -> str:
    """Return what would be done."""
    refuse_file(output, "--output")
    refuse_locked(output, "--output")
    _write_to(output, run, wishes.data)
    begun = read_begun(output)
    if run.resume and begun and is_ready(output):
        complete_wishes(wishes, begun, output)
        return describe(run, read_changes(run.config_file, wishes.options, output), output)
    if run.resume:  # a used folder changes nothing in the plan of a new training
        refuse_used(output, begun, resume=True)
        wishes = complete_wishes(wishes, begun, output) if begun else wishes
    found = read_training_data(wishes)
    plan = _make_plan(wishes, found)
    load_config(plan.base, plan.opts())  # says what there is to say of the options
    return _format_plan(wishes, found, plan, output) + _note_used(output, begun, run.resume)


def _note_used(output: str, begun: Optional[Wishes], resume: bool) -> str:
    """Return a line on a folder in which no training could begin, or ""."""
    try:
        refuse_used(output, begun, resume=resume)
    except UserError as error:
        return f"\n{error.sentence()}"
    return ""


def _make_plan(wishes: Wishes, found: TrainingData) -> Plan:
    return make_plan(wishes, found.train.content, [x.content for x in found.val])


def _format_plan(wishes: Wishes, found: TrainingData, plan: Plan, output: str) -> str:
    """Return the table, and a line on a training that is too short."""
    duration = estimate_duration(plan, [x.content for x in found.val])
    table = make_table(found, plan, duration, output)
    few = "" if wishes.config else warn_if_short(plan, duration)  # its length is not a rule's
    return f"{table}\n{few}" if few else table


def _train(wishes: Wishes, run: Run, output: str) -> Trained:
    """Continue or begin a training in a folder that is locked."""
    begun = read_begun(output)
    if run.resume and begun and is_ready(output):
        complete_wishes(wishes, begun, output)
        changes = read_changes(run.config_file, wishes.options, output)
        print(textwrap.fill(describe(run, changes, output), WIDTH, break_on_hyphens=False))
        with applied(changes, run):
            return _run(run, output)
    refuse_used(output, begun, resume=run.resume)
    if run.resume and begun:
        wishes = complete_wishes(wishes, begun, output)
    found = read_training_data(wishes)
    plan = _make_plan(wishes, found)
    table = _format_plan(wishes, found, plan, output)
    print(table, flush=True)
    if begun:
        print(f"Replacing the files of a training without a checkpoint in {output}.")
    with removed_on_error(output):
        remove_preparation(output)
        _write(run, wishes, found, plan, output)
        return dataclasses.replace(_run(run, output), plan=table)


def _write(run: Run, wishes: Wishes, found: TrainingData, plan: Plan, output: str) -> None:
    """Write the data and, last, the plan, and pass them to the run in memory."""
    training, validation, names = write_training_data(found, wishes, output)
    datasets = {"DATASETS.TRAIN": (training.entry,), "DATASETS.TEST": tuple(names)}
    run.config, text = plan.make_file(run.config_file, {**datasets, OUTPUT: output})
    mark_resumable()  # the plain command would refuse the folder
    write_whole(run.config_file, (HEAD + text).encode())
    run.datasets = [training, *validation]
    run.is_built = plan.memory is not None


def choose_output(data: str, output: str = "", options: Sequence[str] = ()) -> str:
    """Return the output folder: the flag's, the option's, or one named after the data."""
    typed = _read_typed(options)
    if output and typed and os.path.abspath(output) != os.path.abspath(typed):
        raise UserError(f"--output is {output}, and {OUTPUT} {typed}; omit one of them.")
    return output or typed or name_output(data)


def _read_typed(options: Sequence[str]) -> str:
    return os.path.expanduser(dict(zip(options[::2], options[1::2])).get(OUTPUT, ""))


def _run(run: Run, output: str) -> Trained:
    """Train; then evaluate, draw and report with the model that was trained."""
    trainer = start(run)
    trained = find_trained(output)
    if trainer is None:  # several processes have trained, which alone have registered the data
        opts = trained.options()
        predictor = Predictor(trained.config_file, opts=opts, score_threshold=FROM_CONFIG)
        data, names = predictor.options.data, predictor.class_names
        if data.test:
            prepare_datasets(data, training=False, known_classes=names, datasets=run.datasets)
    else:
        model = trainer.experiment.model.eval()
        model.teacher = None  # not needed any more, and often larger
        Checkpointer(model, complete=True).load(trained.weights)
        names = trainer.options.class_names
        predictor = Predictor.from_model(model, trainer.cfg, names, trained.weights)
    summary = None
    if predictor.options.data.test:
        summary = _draw_and_report(predictor, output, run.is_reported)
    return dataclasses.replace(load(output), advice=_advise(predictor, output, summary))


def _advise(predictor: Predictor, output: str, summary: Optional[Dict]) -> str:
    """Return what the report says to do next, or what follows from the training alone."""
    if summary is not None:
        return format_advice([Advice(**x) for x in summary["advice"]])
    records = list(read_records(output))
    history = read_history(predictor, records) if records else None
    return format_advice(list_advice(output, history))


def _draw_and_report(predictor: Predictor, output: str, report: bool) -> Optional[Dict]:
    """Return the content of report.json, if a report was written. Errors lose nothing of the
    training.
    """
    read, made = RecentImages(bit_depth=predictor.options.bit_depth).read, None
    try:
        if report:
            print("Writing the report ...", flush=True)
            made = report_on(
                predictor,
                output=os.path.join(output, "report"),
                command=f"tood report {shlex.quote(output)}",
                overwrite=True,
                read_image=read,
            )
            print(made)
        picture = os.path.join(output, "predictions.png")
        drawn = draw.draw_predictions(
            predictor,
            picture,
            num_images=NUM_DRAWN,
            detections=made.detections if made else None,
            read_image=read,
        )
        print(drawn)
    except UserError as error:
        logger.warning(f"No report was written: {error.sentence()}")
    except Exception as error:  # of any library that draws
        logger.warning(
            f"No report was written ({type(error).__name__}: {format_reason(error)}); try "
            f"again with tood report {shlex.quote(output)}"
        )
    return made.summary if made else None
