"""Train a detector on a folder of photographs with boxes, by settings that follow from the data: a
validation set, the size of the images, the length of the training, the images per step.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shlex
from typing import Iterator, Optional, Sequence, Union

from tood.app import draw
from tood.app.convert.write import LEDGER
from tood.app.plan.choose import (
    PLAN,
    Plan,
    Wishes,
    choose_config,
    list_options,
    make_plan,
    make_table,
    plan_tiles,
)
from tood.app.plan.data import TrainingData, read_training_data, write_training_data
from tood.app.report.make import report_on
from tood.app.trained import Trained, find_trained, load
from tood.checkpoint.checkpointer import Checkpointer
from tood.config.files import ConfigFile, override_config_file, read_config_file
from tood.config.read import read_options
from tood.config.zoo import find_config_file
from tood.data.datasets import prepare_datasets
from tood.data.tiles import RecentImages
from tood.engine.launch import place_from_environment
from tood.engine.train import Run, start
from tood.inference.predictor import Predictor
from tood.inference.thresholds import FROM_CONFIG
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError, format_reason
from tood.utils.files import check_folder, write_whole
from tood.utils.folders import remove_output
from tood.utils.tiles import WHOLE

logger = logging.getLogger("tood")

WRITTEN = (PLAN, "data/train.json", "data/val.json", "data/ledger.json")  # before a training begins
NUM_DRAWN = 8
HEAD = (  # of the plan
    "# What tood train has chosen. To change it: edit a copy, then\n"
    "#   python train_net.py --config-file COPY OUTPUT_DIR output/another\n"
)
# Names of files and folders that say nothing about what is in them.
WITHOUT_MEANING = (
    *("annotations", "_annotations.coco", "result", "images", "data", "train", "labels"),
)


@accept_paths("data", "val_data", "output", "config")
def train(
    data: str,
    *,
    val_data: Union[None, str, Sequence[str]] = None,
    output: str = "",
    epochs: Optional[float] = None,
    images_per_step: Optional[int] = None,
    config: str = "",
    val_share: float = 0.2,
    group: str = "",
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
        output: folder; default: output/ and the name of the data.
        epochs: passes over the training images.
        images_per_step: of all processes together.
        config: a config file, or a name of the project's, that is used unchanged.
        val_share: share of the images to validate on, if it is split off.
        group: regular expression; images whose names share its match stay on one side.
        resume: continue the training in the output folder.
        dry_run: stop after the table; nothing is written.
        report: write report/report.html on the best weights.
        num_gpus: on this machine; 0 on a machine without any.
        options: KEY, VALUE, ... of the config.

    Returns:
        the folder, the best weights, their metrics in percent, and the report.

    Raises:
        UserError: for data, values or a folder that cannot be used.

    Example::

        trained = tood.train("photos/", epochs=20)
        print(trained.metrics["AP"], trained.report)
    """
    wishes = Wishes(config, epochs, images_per_step, [str(x) for x in options])
    output = choose_output(data, output, wishes.options)
    run = _make_run(wishes, output, resume, num_gpus)
    if resume and not dry_run and os.path.isfile(run.config_file):
        refuse_other_data(data, output)
        return _run(run, output, report)
    refuse_used(output)
    with remove_on_error(output):
        if not dry_run:
            check_folder(output, "--output")
        found = read_training_data(data, val_data=val_data, val_share=val_share, group=group)
        base, plan, table = _choose(wishes, found, output)
        if dry_run:
            return Trained("", "", output, plan=f"{table}\nNothing was written (--dry-run).")
        print(table)
        _write(run, found, base, plan, output)
        return dataclasses.replace(_run(run, output, report), plan=table)


def _make_run(wishes: Wishes, output: str, resume: bool, num_gpus: int) -> Run:
    if place_from_environment(os.environ) is not None:
        raise UserError(
            "tood train starts its processes itself: use --num-gpus, or torchrun with train_net.py."
        )
    return Run(
        os.path.join(output, PLAN),
        opts=[*wishes.options, "OUTPUT_DIR", output],
        # Otherwise, they are in the plan.
        epochs=wishes.epochs if wishes.config else None,
        images_per_step=wishes.images_per_step if wishes.config else None,
        resume=resume,
        num_gpus=num_gpus,
    )


def _write(
    run: Run, found: TrainingData, base: ConfigFile, plan: Optional[Plan], output: str
) -> None:
    """Write the data and the plan, and pass them to the run in memory."""
    training, validation = write_training_data(found, output)
    names = [*(dataset.entry for dataset in validation), *found.val_names]
    chosen = list_options(base, training, names, plan, output)
    chosen.update(read_options(base, run.opts))  # or --resume would train without them
    run.config, text = override_config_file(base, run.config_file, chosen)
    write_whole(run.config_file, (HEAD + text).encode())
    run.datasets = [training, *validation]
    run.is_built = plan is not None and plan.memory is not None


def _choose(wishes: Wishes, found: TrainingData, output: str):
    """Return the config file, the plan (None if the user names a config), and the table."""
    content = found.train.content
    tiles = WHOLE if wishes.config else plan_tiles(wishes.options, content)
    name = wishes.config or choose_config(content, tiles)
    config_file = read_config_file(find_config_file(name))
    plan = None if wishes.config else make_plan(wishes, content, config_file, tiles)
    return config_file, plan, make_table(name, found, plan, output, wishes.options)


@contextlib.contextmanager
def remove_on_error(output: str) -> Iterator[None]:
    """Remove what was written for a training that was refused or stopped before it began."""
    try:
        yield
    except BaseException:  # Ctrl-C as well: else the folder would be refused, even with --resume
        if not os.path.exists(os.path.join(output, "config.yaml")):  # which a training writes first
            for name in WRITTEN:
                with contextlib.suppress(OSError):
                    os.remove(os.path.join(output, name))
            for folder in (os.path.join(output, "data"), output):
                with contextlib.suppress(OSError):
                    remove_output(folder)
        raise


def choose_output(data: str, output: str = "", options: Sequence[str] = ()) -> str:
    """Return the output folder: the flag's, the option's, or one named after the data."""
    typed = dict(zip(options[::2], options[1::2]))
    if output or "OUTPUT_DIR" in typed:
        return os.path.expanduser(output or typed["OUTPUT_DIR"])
    path = data.split(".json:")[0]
    if not os.path.exists(path):
        path = path.rpartition(":")[0] or path
    steps = [os.path.splitext(step)[0] for step in os.path.abspath(path).split(os.sep)]
    telling = [x for x in steps if x and x not in WITHOUT_MEANING and x[:10] != "instances_"]
    return os.path.join("output", telling[-1] if telling else "mine")


def refuse_other_data(data: str, output: str) -> None:
    """
    Raises:
        UserError: for a training that was begun with other data.
    """
    try:
        with open(os.path.join(output, "data", LEDGER), encoding="utf-8") as f:
            begun = json.load(f)["data"]
    except (OSError, ValueError, KeyError, TypeError):  # of an older version, or damaged
        return
    if os.path.abspath(os.path.expanduser(data)) != begun:
        raise UserError(
            f"The training in {output} was begun with {begun}, not with {data}; name that, or "
            "another --output."
        )


def refuse_used(output: str) -> None:
    """
    Raises:
        UserError: for a folder that a training has written to before.
    """
    used = [
        name
        for name in (*WRITTEN, "last_checkpoint", "config.yaml")
        if os.path.exists(os.path.join(output, name))
    ]
    if used:
        raise UserError(
            f"{output} has been used already (it contains {used[0]}); continue its training with "
            "--resume, or name another folder with --output."
        )


def _run(run: Run, output: str, report: bool) -> Trained:
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
        Checkpointer(model, complete=True).load(trained.weights)
        names = trainer.options.class_names
        predictor = Predictor.from_model(model, trainer.cfg, names, trained.weights)
    if predictor.options.data.test:
        _draw_and_report(predictor, output, report)
    print(f"Export it: tood export {shlex.quote(output)} --format onnx --output FILE.onnx")
    return load(output)


def _draw_and_report(predictor: Predictor, output: str, report: bool) -> None:
    """Errors lose nothing of the training."""
    read, detections = RecentImages(bit_depth=predictor.options.bit_depth).read, None
    try:
        if report:
            made = report_on(
                predictor,
                output=os.path.join(output, "report"),
                command=f"tood report {shlex.quote(output)}",
                overwrite=True,
                read_image=read,
            )
            print(made)
            detections = made.detections
        picture = os.path.join(output, "predictions.png")
        drawn = draw.draw_predictions(
            predictor, picture, num_images=NUM_DRAWN, detections=detections, read_image=read
        )
        print(drawn)
    except UserError as error:
        logger.warning(f"No report was written: {error.sentence()}")
    except Exception as error:  # of any library that draws
        logger.warning(
            f"No report was written ({type(error).__name__}: {format_reason(error)}); try "
            f"again with tood report {shlex.quote(output)}"
        )
