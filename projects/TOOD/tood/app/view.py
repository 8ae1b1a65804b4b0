"""Draw the images that a training begins with: resized, augmented, with their boxes."""

import itertools
import os
from typing import Dict, Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from tqdm import tqdm

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.config.read import load_config, run_options
from tood.config.zoo import find_config_file
from tood.data.annotations import DataSet, class_names
from tood.data.datasets import prepare_datasets
from tood.engine.trainer import Trainer
from tood.utils.files import check_image_output, write_image
from tood.visualization.draw import add_heading, draw_boxes, image_grid

CONFIG = "tood_R18_GN_small_data"
NUM_IMAGES, COLUMNS = 12, 4


def draw_training_images(
    datasets: Sequence[DataSet],
    output: str,
    *,
    config: str = "",
    overwrite: bool = False,
    options: Sequence[str] = (),
) -> None:
    """Draw the first images of a training on some data sets.

    Args:
        output: path of the drawing, .png or .jpg.
        config: a file or a name; default: the one for small data.
        overwrite: replace a drawing that already exists.
        options: overrides of the config, keys and values in turn.

    Raises:
        UserError: for data or a value that cannot be used, and a drawing that already exists.
    """
    names = {name for dataset in datasets for name in class_names(dataset.content)}
    entries = [dataset.entry for dataset in datasets]
    options = ["MODEL.TOOD.NUM_CLASSES", str(len(names)), *options]
    cfg = load_config(find_config_file(config or CONFIG), options, entries, training=True)
    check_image_output(output, overwrite)
    cfg.DATASETS.TEST = ()  # training data only
    prepare_datasets(run_options(cfg).data, training=True, datasets=datasets)
    labels = MetadataCatalog.get(entries[0]).thing_classes
    images = itertools.chain.from_iterable(Trainer.build_train_loader(cfg))
    images = tqdm(itertools.islice(images, NUM_IMAGES), total=NUM_IMAGES, desc="drawing")
    drawings = [_draw_image(image, cfg.INPUT.FORMAT, labels) for image in images]
    rows = [drawings[i : i + COLUMNS] for i in range(0, len(drawings), COLUMNS)]
    write_image(image_grid(rows), output)


def _draw_image(image: Dict, image_format: str, labels: Sequence[str]) -> np.ndarray:
    """Draw one image of a batch, below its file's name and its size at the network's input."""
    pixels = image["image"].permute(1, 2, 0).numpy()
    if image_format == "BGR":
        pixels = pixels[:, :, ::-1]
    gt = image["instances"]
    drawing = draw_boxes(pixels, gt.gt_boxes.tensor.numpy(), gt.gt_classes.tolist(), labels)
    height, width, _ = pixels.shape
    name = os.path.basename(image["file_name"])
    return add_heading(drawing, f"{width} x {height}  {name}")
