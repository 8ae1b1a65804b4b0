"""Detections as a data set, to be corrected and trained on."""

import os
from typing import Any, Dict, List, Optional, Sequence

from tood.app.convert.command import list_replaced, replaced
from tood.app.convert.door import Part
from tood.app.convert.write import LEDGER, WRITERS, Written, refuse_other, write_dataset
from tood.checkpoint.identity import IDENTITY
from tood.data.inputs import is_video, resolve_folder
from tood.inference.calibration import FIELDS
from tood.inference.predictor import Predictor
from tood.inference.results import Result
from tood.utils.errors import UserError
from tood.utils.files import check_folder, write_json


def check_dataset(save_as: str, inputs: List[str], output: str, overwrite: bool) -> None:
    """Check that a data set can be written, before anything is detected.

    Raises:
        UserError: for another format, inputs that are not images or lie in the folder, and a
            folder that contains other files.
    """
    if save_as not in WRITERS:
        raise UserError(f"--save-as is {save_as!r}; it must be one of {', '.join(WRITERS)}.")
    folder = os.path.join(os.path.realpath(output), "")
    for path in inputs:
        if is_video(path):
            raise UserError(f"{path} is a video; --save-as {save_as} takes images only.")
        if os.path.realpath(path).startswith(folder):
            raise UserError(f"The input {path} lies in {output}; name another --output.")
    list_replaced(output, overwrite)
    check_folder(output, "--output", is_data=True)


def write_detections(
    results: Sequence[Result],
    save_as: str,
    output: str,
    predictor: Predictor,
    overwrite: bool = False,
    also: Optional[Dict[str, Dict]] = None,
) -> None:
    """Write a data set of detections, with the list of its files, in the place of an earlier one.

    Args:
        results: results for at least one image.
        predictor: found them.
        also: content of further JSON files, by their names.
    """
    with replaced(output, overwrite):
        written = _write(results, save_as, output, also or {})
        account: Dict[str, Any] = {"data": predictor.options.weights, "format": "detections"}
        account[IDENTITY] = predictor.identity
        account.update(written=[*written.files, *(also or ())])
        account.update(omitted=written.omitted, changed=written.changed)
        write_json(account, os.path.join(output, LEDGER))


def _write(results: Sequence[Result], save_as: str, output: str, also: Dict[str, Dict]) -> Written:
    content = to_coco(results)
    root = os.path.commonpath([os.path.dirname(resolve_folder(x.path)) for x in results])
    for image in content["images"]:
        path = os.path.relpath(resolve_folder(image["file_name"]), root)
        image["file_name"] = path.replace(os.sep, "/")
    part = Part("all", content, root, "the detections")
    for name, value in also.items():
        refuse_other(os.path.join(output, name))
        write_json(value, os.path.join(output, name))
    return write_dataset(part, save_as, output)


def to_coco(results: Sequence[Result]) -> Dict:
    """Return COCO's instances format, with a score for each annotation; ids begin at 1.

    Args:
        results: at least one. Their calibrated values, if there are any, are written as well.
    """
    images: List[Dict] = []
    annotations: List[Dict] = []
    fields = [(x, key) for x, (_, key) in FIELDS.items() if results[0].instances.has(x)]
    for i, result in enumerate(results, 1):
        height, width = result.instances.image_size
        images.append({"id": i, "file_name": result.path, "height": height, "width": width})
        found = result.as_dict()
        names = ("boxes", "classes", "scores", *(name for name, _ in fields))
        for (x1, y1, x2, y2), label, score, *more in zip(*(found[x].tolist() for x in names)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": score,
                    **{key: x for (_, key), x in zip(fields, more)},
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(results[0].class_names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}
