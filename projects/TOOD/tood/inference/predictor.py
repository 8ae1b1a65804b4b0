"""A trained detector for programs: images in, detections out."""

import functools
import json
import os
import sys
from typing import Dict, List, Mapping, Optional, Sequence, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from tood.checkpoint.checkpointer import Checkpointer
from tood.checkpoint.identity import hash_weights, make_identity
from tood.checkpoint.locate import find_model
from tood.config.build import build_detector
from tood.config.check import get_key, list_changes
from tood.config.read import (
    check_weights,
    finish_config,
    load_config,
    merge_options,
    refuse_missing_gpu,
    run_options,
)
from tood.config.unread import check_switches
from tood.config.zoo import get_config_file
from tood.data.datasets import find_class_names
from tood.data.images import find_path, is_one, list_given, read_by, read_pixels
from tood.data.mapper import CheckedMapper
from tood.data.tiles import LargeImage
from tood.inference.calibration import Calibration, find_calibration, read_calibration
from tood.inference.drift import FLOOR, Watch
from tood.inference.results import Result
from tood.inference.thresholds import (
    FROM_CONFIG,
    Choice,
    Model,
    Thresholds,
    choose_thresholds,
    find_lowest,
)
from tood.inference.tiles import ResizedTOOD, TiledTOOD, resized
from tood.inference.tta import TOODWithTTA, group_by_size
from tood.modeling.detector import TOOD
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError
from tood.utils.tensors import read_tensors

Image = Union[str, "os.PathLike[str]", np.ndarray]
# Keys on which detections of a score depend; a score threshold only removes those below it.
SETTINGS = (
    *("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "INPUT.TILES.SIZE", "INPUT.TILES.OVERLAP"),
    *("MODEL.TOOD.TOPK_CANDIDATES_TEST", "MODEL.TOOD.NMS_THRESH_TEST"),
    *("MODEL.TOOD.CLASS_AGNOSTIC_NMS", "MODEL.TOOD.PRECISION_TEST", "TEST.DETECTIONS_PER_IMAGE"),
    *("INPUT.FORMAT", "INPUT.BIT_DEPTH"),
)
# Keys of the model on which detections do not depend.
SCORE_THRESHOLD = "MODEL.TOOD.SCORE_THRESH_TEST"
OF_THE_RUN = ("MODEL.WEIGHTS", "MODEL.DEVICE", SCORE_THRESHOLD)
AUGMENTATION = ("TEST.AUG.MIN_SIZES", "TEST.AUG.MAX_SIZE", "TEST.AUG.FLIP")


class Predictor:
    """A detector that is ready to use, with the results of ``train_net.py --eval-only``. Calls from
    several threads do not disturb each other.
    """

    @accept_paths("config", "weights")
    def __init__(
        self,
        config: Union[str, "os.PathLike[str]", CfgNode],
        weights: Union[str, "os.PathLike[str]"] = "",
        *,
        device: Optional[str] = None,
        precision: Optional[str] = None,
        score_threshold: Choice = None,
        augment: Optional[bool] = None,
        watch: bool = False,
        opts: Sequence[str] = (),
    ):
        """
        Args:
            config: the output folder of a training, a checkpoint in it, or the name of a released
                model; or, with weights, a config, a yaml file, or a name of the project's, such as
                "tood_R50_FPN_1x".
            weights: a checkpoint, instead of the config's; "tood://NAME" for released weights. A
                checkpoint that was converted or trained here names its classes.
            device: "cpu" or "cuda"; default: the config's, or "cpu" without a GPU.
            precision: "float32", "bfloat16" or "float16"; default: the config's.
            score_threshold: threshold, or one for each class; "from-report": those of the
                best F1 in the report beside the weights; "guaranteed": those of the guarantee
                beside the weights; "from-config": all detections that an evaluation counts.
                Default: those of the report, if it is on these weights, or 0.3.
            augment: use test-time augmentation; default: the config's.
            watch: warn, in one line on stderr, if images are not like those of the calibration any
                more; it needs the calibration.json of ``tood.calibrate``.
            opts: overrides, keys and values in turn.

        Raises:
            UserError: for a config or a checkpoint that cannot be used.
        """
        weights, opts = os.path.expanduser(str(weights)), [*map(str, opts)]
        if not isinstance(config, CfgNode):
            config = os.path.expanduser(str(config))
            if not (weights or config.endswith((".yaml", ".yml")) or "MODEL.WEIGHTS" in opts):
                config, weights, folder = find_model(config)
                opts = ["OUTPUT_DIR", folder, *opts]
        changes = {
            "MODEL.WEIGHTS": weights or None,
            "MODEL.DEVICE": device,
            "MODEL.TOOD.PRECISION_TEST": precision,
            "TEST.AUG.ENABLED": None if augment is None else bool(augment),
        }
        _refuse_two_values(changes, opts)
        changed = [x for item in changes.items() if item[1] is not None for x in item]
        lowest = find_lowest(score_threshold)
        cfg = _read_config(config, [*opts, *changed], lowest)
        options = run_options(cfg)
        if not options.weights:
            raise UserError("No checkpoint given: name its file.")
        check_weights(options.weights)
        path = PathManager.get_local_path(options.weights)
        content = read_tensors(path) if path.endswith(".pth") else {}
        class_names = find_class_names(options.data, content)
        model = build_detector(cfg)
        Checkpointer(model, complete=True, contents={path: content}).load(options.weights)
        self._set(model, cfg, class_names)
        self.thresholds = self.find_thresholds(score_threshold)
        self._set_calibration(watch)

    @classmethod
    def from_model(
        cls, model: TOOD, cfg: CfgNode, class_names: Sequence[str], weights: str = ""
    ) -> "Predictor":
        """Use a model in memory, for example after its training. Nothing is built or read; score
        thresholds are "from-config".

        Args:
            model: not wrapped; it is put into evaluation mode.
            cfg: the complete config of the model.
            class_names: names in the order of the model's classes.
            weights: the checkpoint that the model's weights are from; default: the config's.
        """
        if weights:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.WEIGHTS = weights
        predictor = cls.__new__(cls)
        predictor._set(model, cfg, class_names)
        predictor.thresholds = predictor.find_thresholds(FROM_CONFIG)
        predictor.calibration = predictor.watch = None
        return predictor

    def _set(self, model: TOOD, cfg: CfgNode, class_names: Sequence[str]) -> None:
        options = run_options(cfg)
        self.model, self.cfg, self.options = model.eval(), cfg, options
        self.class_names = list(class_names)
        self.resize = T.ResizeShortestEdge([options.min_size_test] * 2, options.max_size_test)
        self.is_tiled, self.is_augmented = options.tiles.size > 0, options.tta.enabled
        # Views and tiles resize the images themselves.
        self._min_size = 0 if self.is_augmented or self.is_tiled else options.min_size_test
        # What is called: the model, or a module that shows it views or tiles.
        augmented = TOODWithTTA(self.model, options.tta) if self.is_augmented else None
        self.detector = augmented or self.model
        if self.is_tiled:
            finder = augmented or ResizedTOOD(self.model, self.resize)
            self.detector = TiledTOOD(self.model, options.tiles, finder)

    @property
    def settings(self) -> Dict[str, object]:
        """Values of the config that decide, with the weights, which detections there are, as plain
        values.
        """
        keys = [*SETTINGS, *AUGMENTATION * self.is_augmented, *list_changes(self.cfg, "MODEL")]
        keys = [key for key in keys if key not in OF_THE_RUN]
        values = {key: get_key(self.cfg, key) for key in keys}
        values = json.loads(json.dumps(values))  # lists in place of tuples, as in files
        return {**values, "TEST.AUG.ENABLED": self.is_augmented}

    @property
    def identity(self) -> Dict[str, str]:
        """Hash of the weights, as files of detections contain it."""
        return make_identity(weights=hash_weights(self.model.state_dict()))

    def find_thresholds(self, choice: Choice = None) -> Thresholds:
        """Return the score threshold of each class; arguments and errors as of
        :func:`tood.inference.thresholds.choose_thresholds`.
        """
        return choose_thresholds(choice, self.describe())

    def describe(self) -> Model:
        """Return the facts that its thresholds and its calibration depend on."""
        weights = self.options.weights
        return Model(
            weights,
            # Released weights have their report in the output folder.
            os.path.dirname(weights) if os.path.isfile(weights) else self.options.output_dir,
            self.class_names,
            self.model.score_thresh_test,
            lambda: hash_weights(self.model.state_dict()),
            self.settings,
        )

    def _set_calibration(self, watch: bool) -> None:
        """Read the calibration beside the weights, if it is on these, and start a watch."""
        facts = self.describe()
        self.calibration: Optional[Calibration] = None
        self.watch: Optional[Watch] = None
        if watch or os.path.exists(find_calibration(facts)):
            try:
                self.calibration = read_calibration(facts, self.settings)
            except UserError as error:
                if watch:
                    raise
                note = f"Scores are not calibrated: {error.sentence()}"
                self.thresholds = self.thresholds._replace(
                    note="\n".join(filter(None, (self.thresholds.note, note)))
                )
        if watch:
            if facts.score_threshold > FLOOR:
                raise UserError(
                    f"A watch needs all detections of at least {FLOOR}; set "
                    f"MODEL.TOOD.SCORE_THRESH_TEST, {facts.score_threshold:g}, to {FLOOR}."
                )
            known = self.calibration
            assert known is not None  # its error was raised
            self.watch = Watch(known.reference, known.thresholds, known.seed)

    def __call__(self, images: Union[Image, Sequence[Image]]):
        """
        Args:
            images: one, or a list, of file names or of arrays (H, W, 3) uint8 in BGR, as OpenCV
                reads them and Detectron2's ``DefaultPredictor`` takes them. They may have
                different sizes.

        Returns:
            ``Instances`` on the CPU, or a list of them: "pred_boxes", XYXY pixels of the image,
            "scores" and "pred_classes", sorted by descending score; after ``tood.calibrate``,
            "calibrated_scores" and "expected_ious" as well.

        Raises:
            UserError: for a file that cannot be read, or an array of another kind.
        """
        found = self._detect(list_given(images))
        return found[0] if is_one(images) else found

    def _detect(self, images: List[Image]) -> List[Instances]:
        names = [find_path(x) for x in images]
        if self.watch:  # it looks at the pixels
            images = [read_pixels(x, self.options.bit_depth) for x in images]
        return [self.finish(*x) for x in zip(self.find_all(images), images, names)]

    def finish(self, instances: Instances, image: Image, name: str = "") -> Instances:
        """Return the detections of at least the thresholds. If there is a calibration, set the
        fields "calibrated_scores" and "expected_ious" of all; if there is a watch, show it the
        image, and print its alarm.

        Args:
            instances: all detections of an image.
            image: its pixels, if there is a watch.
            name: name of the image, for the alarm.
        """
        if self.calibration:
            self.calibration.add_values(instances)
        if self.watch:
            pixels = read_pixels(image, self.options.bit_depth)
            alarm = self.watch.observe(instances, pixels, name)
            if alarm:
                tqdm.write(f"warning: {alarm}", file=sys.stderr)
        return self.thresholds.select(instances)

    def as_dicts(self, images: Union[Image, Sequence[Image]]) -> Union[Dict, List[Dict]]:
        """Return plain values for each image: "boxes" (D, 4), "scores" (D,), "classes" (D,) and
        further fields of the head, all arrays, and "names", a list.
        """
        found = self(images)
        if isinstance(found, list):
            return [self.to_dict(x) for x in found]
        return self.to_dict(found)

    def to_dict(self, instances: Instances) -> Dict:
        """Return the plain values of :meth:`as_dicts` for detections of one image."""
        return Result(instances, self.class_names).as_dict()

    def predict(self, images: Union[Image, Sequence[Image]]) -> List[Result]:
        """Return the detections of each image, which are read one after the other.

        Args:
            images: one or more, as of :meth:`__call__`.

        Raises:
            UserError: as :meth:`__call__`.
        """
        return [self._predict_one(image) for image in list_given(images)]

    def _predict_one(self, image: Image) -> Result:
        path = find_path(image)
        read = functools.partial(read_pixels, image, self.options.bit_depth)
        return Result(self(image), self.class_names, path, read)

    def build_test_loader(self, dataset: Union[str, List[Dict]]):
        """Return Detectron2's loader of a data set, its registered name or its records, for
        ``detector``.
        """
        mapper = CheckedMapper(
            is_train=False,
            augmentations=[self.resize] if self._min_size > 0 else [],
            image_format=self.options.input_format,
            bit_depth=self.options.bit_depth,
        )
        records = DatasetCatalog.get(dataset) if isinstance(dataset, str) else dataset
        return build_detection_test_loader(records, mapper=mapper)

    @torch.no_grad()
    def find_all(self, images: List[Image]) -> List[Instances]:
        """Return all detections of images that the model finds, as an evaluation counts them."""
        if self.is_tiled:  # one large image at a time is read
            found = (self.detector([self.make_large_input(image)]) for image in images)
            return [x["instances"].to("cpu") for (x,) in found]
        inputs = [self.make_input(image) for image in images]
        results: List[Optional[Instances]] = [None] * len(inputs)
        for same in group_by_size(inputs):
            for i, output in zip(same, self.detector([inputs[i] for i in same])):
                results[i] = output["instances"].to("cpu")
        return results

    def make_large_input(self, image: Image) -> Dict:
        """Return the input of :class:`TiledTOOD`: a file is read one part after the other."""
        if not isinstance(image, (str, os.PathLike)):
            return self.make_input(image)
        reader = read_by(LargeImage, image, self.options.input_format, self.options.bit_depth)
        return {"reader": reader, "height": reader.height, "width": reader.width}

    def make_input(self, image: Image) -> Dict:
        """
        Returns:
            the input of the model: "image" (3, H, W) uint8, resized and in the channels' order of
            ``INPUT.FORMAT``, and "height" and "width" of the original image.
        """
        name = f"The image {image}" if isinstance(image, (str, os.PathLike)) else "An image"
        pixels = read_pixels(image, self.options.bit_depth)
        height, width = pixels.shape[:2]
        if self._min_size > 0:
            shorter = self.options.min_size_test / min(height, width)
            shorter = min(shorter, self.options.max_size_test / max(height, width))
            if min(height, width) * shorter < 0.5:
                raise UserError(
                    f"{name} is of extreme aspect ratio ({width} x {height}): nothing is left of "
                    "it at the network's size; cut it into pieces."
                )
        if self.options.input_format == "RGB":
            pixels = pixels[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        if self._min_size > 0:
            tensor = resized(tensor, self.resize)
        return {"image": tensor, "height": height, "width": width}


def _read_config(config: Union[str, CfgNode], opts: Sequence, lowest: float) -> CfgNode:
    """Read a config by which a model finds detections of at least ``lowest``."""
    if isinstance(config, CfgNode):
        cfg = config.clone()
        cfg.defrost()
        merge_options(cfg, opts)
        check_switches(cfg, opts[::2], lambda: config)
        refuse_missing_gpu(str(dict(zip(opts[::2], opts[1::2])).get("MODEL.DEVICE", "")))
        finish_config(cfg)
    else:
        cfg = load_config(_find_file(config), opts)
    if lowest < cfg.MODEL.TOOD.SCORE_THRESH_TEST:
        if SCORE_THRESHOLD in opts[::2]:
            typed = cfg.MODEL.TOOD.SCORE_THRESH_TEST
            raise UserError(
                f"Detections of scores from {lowest:g} on are asked for, but {SCORE_THRESHOLD} is "
                f"{typed:g}; omit one of them."
            )
        cfg.defrost()
        cfg.MODEL.TOOD.SCORE_THRESH_TEST = lowest
    return cfg


def _refuse_two_values(arguments: Mapping[str, object], opts: Sequence[str]) -> None:
    """Raise UserError if an argument and an option ask for two values of a key."""
    typed = dict(zip(opts[::2], opts[1::2]))
    for key, value in arguments.items():
        other = typed.get(key, str(value))
        is_same = other == str(value) or os.path.realpath(other) == os.path.realpath(str(value))
        if value is not None and not is_same:
            raise UserError(f"{key} {typed[key]} and {value} are asked for; omit one of them.")


def _find_file(config: str) -> str:
    if not os.path.isfile(config) and not config.endswith((".yaml", ".yml")):
        return get_config_file(config)
    return config
