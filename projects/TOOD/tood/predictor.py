"""Pictures in, detections out: a trained detector for programs and for the demo."""

import os
from itertools import groupby
from typing import Dict, List, Optional, Sequence, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager

from tood import model_zoo
from tood.checkpoint.checkpointer import Checkpointer
from tood.config.read import check_weights, finish_config, load_config
from tood.data.annotations import read_annotations
from tood.data.datasets import parse_own_data
from tood.data.images import IMAGE_ERRORS, read_image
from tood.modeling.tta import TOODWithTTA
from tood.utils.errors import UserError
from tood.utils.files import read_tensors

__all__ = ["Predictor", "class_names_of", "read_picture"]

Image = Union[str, "os.PathLike[str]", np.ndarray]


class Predictor:
    """
    A detector that is ready to use, with the results of ``train_net.py --eval-only``. Calls from
    several threads do not disturb each other.
    """

    def __init__(
        self,
        config: Union[str, CfgNode],
        weights: str = "",
        *,
        device: Optional[str] = None,
        precision: Optional[str] = None,
        score_threshold: Optional[float] = None,
        augment: Optional[bool] = None,
        opts: Sequence[str] = (),
    ):
        """
        Args:
            config: a config, its file, yacs's or Python, or a name of the project's, as
                "tood_R50_FPN_1x" or "tood_R50_FPN_1x.py".
            weights: a checkpoint, instead of the config's ``MODEL.WEIGHTS``; "tood://NAME" are the
                released ones. One that was converted or trained here names its classes.
            device: "cpu" or "cuda"; default: the config's, or "cpu" where there is no GPU.
            precision: "float32", "bfloat16" or "float16"; default: the config's.
            score_threshold: of detections; default: the config's.
            augment: look at each picture in several sizes and flipped, as ``TEST.AUG`` says;
                default: ``TEST.AUG.ENABLED``.
            opts: further keys and values of the config; of one in Python, "key=value" each.

        Raises:
            UserError: for a config or a checkpoint that cannot be used.
        """
        changes = {
            "MODEL.WEIGHTS": weights or None,
            "MODEL.DEVICE": device,
            "MODEL.TOOD.PRECISION_TEST": precision,
            "MODEL.TOOD.SCORE_THRESH_TEST": None
            if score_threshold is None
            else float(score_threshold),
        }
        changes = {key: value for key, value in changes.items() if value is not None}
        self.cfg = _config_of(config, opts, changes)
        augment = self.cfg.TEST.AUG.ENABLED if augment is None else augment
        weights = self.cfg.MODEL.WEIGHTS
        if not weights:
            raise UserError("There is nothing to predict with: name a checkpoint.")
        check_weights(weights)
        path = PathManager.get_local_path(weights)
        content = read_tensors(path) if path.endswith(".pth") else {}
        self.class_names = class_names_of(self.cfg, content)
        self.model = build_model(self.cfg).eval()
        Checkpointer(self.model, complete=True).load(weights)
        self._detect = TOODWithTTA(self.cfg, self.model) if augment else self.model
        self._min_size = 0 if augment else self.cfg.INPUT.MIN_SIZE_TEST
        self._resize = T.ResizeShortestEdge(
            [self.cfg.INPUT.MIN_SIZE_TEST] * 2, self.cfg.INPUT.MAX_SIZE_TEST
        )

    def __call__(self, images: Union[Image, Sequence[Image]]):
        """
        Args:
            images: one, or a list, of file names or of arrays (H, W, 3) uint8 in BGR, as OpenCV
                reads them and Detectron2's ``DefaultPredictor`` takes them. They may have
                different sizes.

        Returns:
            ``Instances`` on the CPU, or a list of them: "pred_boxes", XYXY pixels of the image,
            "scores" and "pred_classes", by falling score.

        Raises:
            UserError: for a file that cannot be read, or an array that is no such picture.
        """
        if isinstance(images, (str, os.PathLike, np.ndarray)):
            return self._predict([images])[0]
        return self._predict(list(images))

    def as_dicts(self, images: Union[Image, Sequence[Image]]) -> Union[Dict, List[Dict]]:
        """
        As a call, but with plain values: for each image "boxes" (D, 4), "scores" (D,), "classes"
        (D,), arrays, and "names", a list.
        """
        found = self(images)
        return (
            [self._as_dict(x) for x in found] if isinstance(found, list) else self._as_dict(found)
        )

    def _as_dict(self, instances: Instances) -> Dict:
        classes = instances.pred_classes.numpy()
        return {
            "boxes": instances.pred_boxes.tensor.numpy(),
            "scores": instances.scores.numpy(),
            "classes": classes,
            "names": [self.class_names[c] for c in classes],
        }

    @torch.no_grad()
    def _predict(self, images: List[Image]) -> List[Instances]:
        inputs = [self.input_of(image) for image in images]
        # Only pictures of one size share a batch: padding would change what is seen.
        results: List[Optional[Instances]] = [None] * len(inputs)
        by_size = sorted(range(len(inputs)), key=lambda i: inputs[i]["image"].shape)
        for _, same in groupby(by_size, key=lambda i: inputs[i]["image"].shape):
            same = list(same)
            for i, output in zip(same, self._detect([inputs[i] for i in same])):
                results[i] = output["instances"].to("cpu")
        return results

    def input_of(self, image: Image) -> Dict:
        """
        Returns:
            what the model takes: "image" (3, H, W) uint8, resized and in the channels' order of
            ``INPUT.FORMAT``, and the picture's own "height" and "width".
        """
        image = _pixels_of(image)
        height, width = image.shape[:2]
        if self.cfg.INPUT.FORMAT == "RGB":
            image = image[:, :, ::-1]
        if self._min_size > 0:
            image = self._resize.get_transform(image).apply_image(np.ascontiguousarray(image))
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return {"image": image, "height": height, "width": width}


def class_names_of(cfg: CfgNode, checkpoint: Dict) -> List[str]:
    """
    Args:
        cfg: its data sets are asked where the checkpoint does not say.
        checkpoint: content of a file.

    Returns:
        a name for each class; numbers, where nobody knows them.
    """
    number = cfg.MODEL.TOOD.NUM_CLASSES
    candidates = [checkpoint.get("class_names")]
    for entry in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        candidates.append(_class_names_of_data(entry))
    candidates.append([str(i) for i in range(number)])
    return next(list(names) for names in candidates if names and len(names) == number)


def _class_names_of_data(entry: str) -> Optional[List[str]]:
    own_data = parse_own_data(entry)
    if own_data is None or entry in DatasetCatalog.list():
        known = entry in DatasetCatalog.list()
        return MetadataCatalog.get(entry).get("thing_classes") if known else None
    try:
        content = read_annotations(own_data.json_file, to_test=False)
    except UserError:
        return None
    return [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]


def _config_of(config: Union[str, CfgNode], opts: Sequence, changes: Dict) -> CfgNode:
    opts = [str(x) for x in opts]
    if isinstance(config, CfgNode):
        config = config.clone()
        config.defrost()
        config.merge_from_list([*opts, *(x for item in changes.items() for x in item)])
        finish_config(config)
        return config
    if not os.path.isfile(config) and not str(config).endswith((".yaml", ".yml")):
        config = model_zoo.get_config_file(str(config))
    return load_config(str(config), opts, changes=changes)


def read_picture(path: Union[str, "os.PathLike[str]"]) -> np.ndarray:
    """
    Returns:
        (H, W, 3) uint8 in BGR.

    Raises:
        UserError: with its name, for a file that cannot be read.
    """
    try:
        return read_image(os.fspath(path), "BGR")
    except IMAGE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"The image {path} cannot be read ({reason}).") from error


def _pixels_of(image: Image) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise UserError(
                f"A picture must be an array (H, W, 3) of uint8, in BGR; this one has the shape "
                f"{image.shape} and the type {image.dtype}."
            )
        return image
    return read_picture(image)
