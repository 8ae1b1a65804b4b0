"""Explain why an object was found, or was not: one sentence and one drawing."""

import os
from dataclasses import dataclass, field
from typing import List, Optional, Sequence, Tuple, Union

import torch

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.app.report.reasons import (
    IOU,
    SCORE,
    SETTINGS,
    THRESHOLD,
    Objects,
    draw_reason,
    find_reason,
    make_objects,
)
from tood.app.trained import find_trained
from tood.data.annotations import class_names as names_of
from tood.data.annotations import has_size, read_annotations
from tood.data.entries import parse_own_data
from tood.data.images import probe_image
from tood.inference.predictor import Predictor
from tood.inference.thresholds import Thresholds, parse_threshold
from tood.inference.views import View, find_view
from tood.modeling.box_ops import paired_iou
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError
from tood.utils.files import check_image_output, choose_output, write_image
from tood.utils.reading import parse_number
from tood.utils.suggest import suggest_path

LARGEST = 1e9  # of the numbers of a box, pixels


@dataclass(frozen=True)
class Explanation:
    """The reason why an object was found, or was not; ``str(explanation)`` says all of it."""

    class_name: str
    cause: str  # a constant of tood.app.report.reasons
    sentence: str
    choice: str  # a sentence on the annotation and the class that the box was taken for
    assignment: str  # a sentence on the locations that training would assign to it
    output: str  # path of the drawing
    thresholds: Thresholds = field(repr=False)  # of detections that count

    @property
    def setting(self) -> str:
        """Key of the config, or flag, by which the object may be kept; "" if none helps."""
        return SETTINGS.get(self.cause, "")

    def __str__(self) -> str:
        text = self.thresholds.add_note(
            f"{self.class_name}: {self.sentence}\n{self.choice}\n{self.assignment}\n"
            f"Detections {self.thresholds.text} count.\nIts locations: {self.output}"
        )
        return f"{text}\nTo change that: {self.setting}" if self.setting else text


@accept_paths("model", "image", "output", "config")
def explain(
    model: str,
    image: str,
    box: Union[str, Sequence[float]],
    *,
    class_name: str = "",
    score_threshold: Union[None, float, str] = None,
    output: str = "",
    overwrite: bool = False,
    config: str = "",
    options: Sequence[str] = (),
) -> Explanation:
    """Explain why a model found an object, or did not, and draw its locations::

        print(tood.explain("output/mine", "photos/a.jpg", (120, 40, 60, 80)))

    Class and neighbours are those of the annotations in ``DATASETS.TEST`` and ``DATASETS.TRAIN``,
    if the image is in one of them.

    Args:
        model: an output folder, a checkpoint, or the name of a released model.
        image: path of an image file.
        box: x, y, width and height in pixels of the image; or a text, "120,40,60,80".
        class_name: class of the object; default: that of the annotation with the highest IoU, of
            at least 0.5, or the most likely one. The answer says which of these it is.
        score_threshold: threshold of detections that count, as in ``tood.predict``.
        output: path of the drawing; default: "explained/IMAGE_X_Y_WIDTH_HEIGHT.png" in the model's
            output folder, with a number if it exists.
        overwrite: replace a drawing that already exists.
        config: file of the model's config; default: config.yaml beside the checkpoint.
        options: overrides of the config, keys and values in turn.

    Raises:
        UserError: for a file or a value that cannot be used, and a drawing that already exists.
    """
    box, score_threshold = parse_box(box), parse_threshold(score_threshold)
    trained = find_trained(model, config)
    default = os.path.join(trained.folder, "explained", _name_drawing(image, box))
    if not os.path.isfile(image):
        raise UserError(f"There is no image {image}{suggest_path(image) or '; check its name.'}")
    output = choose_output(output, default, overwrite)
    check_image_output(output, overwrite)
    opts = trained.options(options, writes=False)
    predictor = Predictor(trained.config_file, opts=opts, score_threshold=score_threshold)
    view = find_view(predictor, image, box)
    width, height = probe_image(image)
    x, y, w, h = box
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise UserError(
            f"The box {box} lies outside of {image}, which is {width} x {height} pixels."
        )
    objects, choice = find_objects(predictor, view, image, box, class_name)
    names = predictor.class_names
    limit = predictor.thresholds.values[objects.class_index]
    reason = find_reason(predictor.model, view.image, objects, names, limit)
    pixels = view.image.permute(1, 2, 0).numpy()
    pixels = pixels if predictor.options.input_format == "RGB" else pixels[:, :, ::-1]
    write_image(draw_reason(reason, pixels, objects, names), output)
    name = names[objects.class_index]
    sentences = reason.sentence, choice, reason.assignment
    is_typed = score_threshold == predictor.model.score_thresh_test  # below the model's own
    cause = THRESHOLD if is_typed and reason.cause == SCORE else reason.cause
    return Explanation(name, cause, *sentences, output, predictor.thresholds)


def parse_box(box: Union[str, Sequence[float]]) -> List[float]:
    """Return x, y, width and height of four numbers or a text, "120,40,60,80".

    Raises:
        UserError: for anything else, and a box without width or height.
    """
    parts = [x for x in box.replace(" ", ",").split(",") if x] if isinstance(box, str) else box
    try:
        numbers = [parse_number(x, -LARGEST, LARGEST) for x in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4 or not min(numbers[2:]) > 0:
        raise UserError(
            f"The box is {box!r:.80}; write x,y,width,height in pixels of the image, as "
            "120,40,60,80."
        )
    return numbers


def _name_drawing(image: str, box: Sequence[float]) -> str:
    stem = os.path.splitext(os.path.basename(image))[0]
    stem = os.fsencode(stem)[:80].decode(errors="ignore")
    return "_".join([stem, *(f"{x:g}" for x in box)]) + ".png"


def find_objects(
    predictor: Predictor, view: View, image: str, box: Sequence[float], class_name: str
) -> Tuple[Objects, str]:
    """Return the objects of an image, and the one that a box means, which may not be annotated;
    and a sentence on that choice.

    Raises:
        UserError: for the name of another class.
    """
    names = predictor.class_names
    if class_name and class_name not in names:
        raise UserError(f"The class {class_name!r} (--class) is none of {', '.join(names)}.")
    annotated = read_objects_of_image(predictor, image)
    boxes, classes = annotated or ([], [])
    corner = (view.x, view.y)
    objects = make_objects(boxes, classes, 0, view.scale, corner)
    asked = make_objects([box], [0], 0, view.scale, corner).box
    ious = paired_iou(objects.boxes, asked).tolist()
    k = names.index(class_name) if class_name else None
    meant = find_nearest(ious, classes, k)
    if meant is not None:
        name = names[classes[meant]]
        return objects._replace(asked=meant), (
            f"The box means the annotated {name} (IoU {ious[meant]:.2f})."
        )
    k = find_likeliest_class(predictor.model, view, asked) if k is None else k
    source = "as typed" if class_name else "the most likely one"
    missing = "The data sets of the model do not contain this image"
    if annotated is not None:
        missing = _describe_missing(ious, [names[c] for c in classes], class_name)
    all_classes = torch.cat([objects.classes, torch.tensor([k])])
    objects = Objects(torch.cat([objects.boxes, asked[None]]), all_classes, len(boxes))
    return objects, f"{missing}; the class is {names[k]}, {source}."


def find_nearest(ious: Sequence[float], classes: Sequence[int], k: Optional[int]) -> Optional[int]:
    """Return the index of the annotation that a box means: that of the highest IoU with it, of the
    class ``k`` if it is given; None if none overlaps it by half.
    """
    near = [i for i, x in enumerate(ious) if x >= IOU and k in (None, classes[i])]
    return max(near, key=lambda i: ious[i], default=None)


def _describe_missing(ious: Sequence[float], names: Sequence[str], class_name: str) -> str:
    """Say that no annotation is at a box, and which one is next to it."""
    text = f"No {class_name} is annotated there" if class_name else "No annotation is there"
    best = max(range(len(ious)), key=lambda i: ious[i], default=None)
    if best is None or not ious[best]:
        return text
    return f"{text} (the nearest annotation, {names[best]}, has an IoU of {ious[best]:.2f})"


@torch.no_grad()
def find_likeliest_class(model, view: View, box: torch.Tensor) -> int:
    """Return the class of the highest score of a location whose box overlaps by half, or most."""
    scores, boxes, _ = model.predict_dense([{"image": view.image}])
    ious = paired_iou(boxes[0], box.to(boxes[0]))
    near = ious >= min(0.5, float(ious.max()))
    return int(scores[0][near].amax(dim=0).argmax())


def read_objects_of_image(
    predictor: Predictor, path: str
) -> Optional[Tuple[List[List[float]], List[int]]]:
    """Return boxes and classes of an image from the data sets of the config; None if it is in none
    of them.
    """
    data = predictor.options.data
    for entry in (*data.test, *data.train):
        own_data = parse_own_data(entry)
        if own_data is None:
            continue
        try:
            content = read_annotations(*own_data, to_train=False)
        except UserError:  # not needed
            continue
        paths = {
            x["id"]: os.path.join(own_data.image_root, x["file_name"]) for x in content["images"]
        }
        ids = (i for i, x in paths.items() if os.path.exists(x) and os.path.samefile(x, path))
        image_id = next(ids, None)
        if image_id is None or not set(names_of(content)) <= set(predictor.class_names):
            continue
        names = {c["id"]: predictor.class_names.index(c["name"]) for c in content["categories"]}
        mine = [
            a
            for a in content.get("annotations", ())
            if a["image_id"] == image_id and has_size(a["bbox"]) and not a["iscrowd"]
        ]
        return [a["bbox"] for a in mine], [names[a["category_id"]] for a in mine]
    return None
