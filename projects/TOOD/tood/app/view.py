"""Draw the images that a training begins with: resized, augmented, with their boxes."""

import itertools
import os
from dataclasses import dataclass
from typing import Dict, List, Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from tqdm import tqdm

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.app.draw import check_grid
from tood.config.read import load_config, run_options
from tood.data.check import DataReport
from tood.data.datasets import prepare_datasets
from tood.engine.trainer import Trainer
from tood.utils.files import check_image_output, write_image
from tood.visualization.draw import add_heading, draw_boxes, image_grid


@dataclass(frozen=True)
class TrainingImages:
    """Training images that were drawn into a file."""

    output: str
    num_images: int
    reports: List[DataReport]  # of the data check

    def __str__(self) -> str:
        return f"{self.num_images} images, as a training may begin with them: {self.output}"


def draw_training_images(
    config: str,
    *,
    train_data: Sequence[str] = (),
    output: str = "data.png",
    num_images: int = 12,
    columns: int = 4,
    scale: float = 1.0,
    overwrite: bool = False,
    options: Sequence[str] = (),
) -> TrainingImages:
    """Check data sets, and draw the first images of a training::

        draw_training_images("mine.yaml", train_data=["train.json:images"], output="data.png")

    Args:
        config: a file.
        train_data: data sets; default: the config's.
        output: path of the drawing, .png or .jpg.
        num_images: number of images.
        columns: images in a row.
        scale: size of a drawn image over its size at the network's input.
        overwrite: replace a drawing that already exists.
        options: overrides of the config, keys and values in turn.

    Raises:
        UserError: for data or a value that cannot be used, and a drawing that already exists.
    """
    check_grid(num_images, columns, scale)
    cfg = load_config(config, options, train_data, training=True)
    check_image_output(output, overwrite)
    cfg.DATASETS.TEST = ()  # training data only
    reports = prepare_datasets(run_options(cfg).data, training=True)
    class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    images = itertools.chain.from_iterable(Trainer.build_train_loader(cfg))
    drawings = [
        _draw_image(image, cfg.INPUT.FORMAT, class_names, scale)
        for image in tqdm(itertools.islice(images, num_images), total=num_images, desc="drawing")
    ]
    rows = [drawings[i : i + columns] for i in range(0, len(drawings), columns)]
    write_image(image_grid(rows), output)
    return TrainingImages(output, len(drawings), reports)


def _draw_image(
    image: Dict, image_format: str, class_names: Sequence[str], scale: float
) -> np.ndarray:
    """Draw one image of a batch, below its file's name and its size at the network's input."""
    pixels = image["image"].permute(1, 2, 0).numpy()
    if image_format == "BGR":
        pixels = pixels[:, :, ::-1]
    gt = image["instances"]
    boxes, classes = gt.gt_boxes.tensor.numpy(), gt.gt_classes.tolist()
    drawing = draw_boxes(pixels, boxes, classes, class_names, scale=scale)
    height, width, _ = pixels.shape
    name = os.path.basename(image["file_name"])
    return add_heading(drawing, f"{width} x {height}  {name}")
