"""Draw predictions beside ground truth, for some images of a data set, into one drawing."""

import math
import os
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Sequence, Union

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from tqdm import tqdm

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.app.trained import find_trained, read_predictor
from tood.data.images import IMAGE_ERRORS
from tood.data.tiles import RecentImages
from tood.inference.predictor import Predictor
from tood.inference.thresholds import Thresholds, parse_threshold
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError
from tood.utils.files import check_image_output, choose_output, write_image
from tood.visualization.draw import add_heading, draw_boxes, image_grid


@dataclass(frozen=True)
class Drawn:
    """Images that were drawn into a file."""

    output: str
    num_images: int
    thresholds: Thresholds = field(repr=False)  # of the predictions

    def __str__(self) -> str:
        return self.thresholds.add_note(
            f"Predictions (left) and ground truth (right): {self.output}\n"
            f"Detections {self.thresholds.text} are drawn."
        )


@accept_paths("model", "val_data", "output", "config")
def draw(
    model: str,
    *,
    val_data: str = "",
    output: str = "",
    num_images: int = 6,
    columns: int = 2,
    score_threshold: Union[None, float, str] = None,
    scale: float = 1.0,
    overwrite: bool = False,
    config: str = "",
    options: Sequence[str] = (),
) -> Drawn:
    """Draw the predictions of a trained model beside the ground truth::

        tood.draw("output/mine", num_images=8, output="predictions.png")

    Args:
        model: an output folder, a checkpoint, or the name of a released model.
        val_data: the data set, a folder or ANNOTATIONS.json:IMAGES; default: the config's.
        output: path of the drawing, .png or .jpg; default: "drawings/predictions.png" in the
            model's output folder, with a number if it exists.
        num_images: number of images, the first of the data set.
        columns: pairs in a row.
        score_threshold: threshold of the predictions that are drawn, as in ``tood.predict``.
        scale: size of a drawn image over the size of the image.
        overwrite: replace a drawing that already exists.
        config: file of the model's config; default: config.yaml beside the checkpoint.
        options: overrides of the config, keys and values in turn.

    Raises:
        UserError: for a file or a value that cannot be used, and a drawing that already exists.
    """
    for name, value in (("num-images", num_images), ("columns", columns), ("scale", scale)):
        if not 0 < value < math.inf:
            raise UserError(f"--{name} is {value}; it must be a number above 0.")
    score_threshold = parse_threshold(score_threshold)
    trained = find_trained(model, config)
    default = os.path.join(trained.folder, "drawings", "predictions.png")
    output = choose_output(output, default, overwrite)
    check_image_output(output, overwrite)
    predictor, _ = read_predictor(trained, val_data, options, score_threshold, writes=False)
    return draw_predictions(
        predictor,
        output,
        num_images=num_images,
        columns=columns,
        thresholds=predictor.thresholds,
        scale=scale,
    )


def draw_predictions(
    predictor: Predictor,
    output: str,
    *,
    num_images: int = 6,
    columns: int = 2,
    thresholds: Optional[Thresholds] = None,
    scale: float = 1.0,
    detections: Optional[List[Dict]] = None,
    read_image: Optional[Callable[[str], np.ndarray]] = None,
) -> Drawn:
    """Draw like :func:`draw`, with a model in memory and its first validation data set, which is
    registered. A file that already exists is replaced.

    Args:
        thresholds: thresholds of the predictions that are drawn; default: those of :func:`draw`.
        detections: detections in the data set, in COCO's format, as in a ``Report``; default: the
            predictor is called.
        read_image: returns the pixels (H, W, 3) uint8, RGB, of a path; default: of its file.

    Raises:
        UserError: for an image that cannot be read, and a drawing that cannot be written.
    """
    check_image_output(output)
    name = predictor.options.data.test[0]
    records, metadata = DatasetCatalog.get(name)[:num_images], MetadataCatalog.get(name)
    read = read_image or RecentImages(bit_depth=predictor.options.bit_depth).read
    thresholds, pairs = thresholds or predictor.find_thresholds(), []
    for record in tqdm(records, desc="drawing", disable=None, leave=False):
        try:
            image = read(record["file_name"])
        except IMAGE_ERRORS as error:
            path = record["file_name"]
            raise UserError(f"The image {path} cannot be read ({error}).") from error
        if detections is None:
            (found,) = predictor.find_all([np.ascontiguousarray(image[:, :, ::-1])])
        else:
            found = _to_instances(record, detections, metadata)
        found = thresholds.select(found)
        pairs.append(_draw_pair(image, record, found, metadata.thing_classes, scale))
    rows = [sum(pairs[i : i + columns], []) for i in range(0, len(pairs), columns)]
    headings = ("predictions", "ground truth")
    rows[0] = [add_heading(drawing, headings[i % 2]) for i, drawing in enumerate(rows[0])]
    write_image(image_grid(rows), output)
    return Drawn(output, len(pairs), thresholds)


def _to_instances(record: Dict, detections: List[Dict], metadata) -> Instances:
    """Select the detections of an image, and return them like a predictor."""
    mine = [x for x in detections if x["image_id"] == record["image_id"]]
    classes = metadata.get("thing_dataset_id_to_contiguous_id")
    boxes = torch.tensor([x["bbox"] for x in mine], dtype=torch.float32).reshape(-1, 4)
    return Instances(
        (record["height"], record["width"]),
        pred_boxes=Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)),
        scores=torch.tensor([x["score"] for x in mine], dtype=torch.float32),
        pred_classes=torch.tensor(
            [classes[x["category_id"]] if classes else x["category_id"] for x in mine],
            dtype=torch.int64,
        ),
    )


def _draw_pair(
    image: np.ndarray, record: Dict, found: Instances, class_names: List[str], scale: float
) -> List[np.ndarray]:
    """Return two drawings of an image: its detections, and its annotations."""
    boxes, classes = found.pred_boxes.tensor.numpy(), found.pred_classes.tolist()
    scores = found.scores.tolist()
    predicted = draw_boxes(image, boxes, classes, class_names, scores, scale=scale)
    annotations = record["annotations"]
    boxes = np.array(
        [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    )
    classes = [a["category_id"] for a in annotations]
    return [predicted, draw_boxes(image, boxes, classes, class_names, scale=scale)]
