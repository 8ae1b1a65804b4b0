"""The detectors that ``benchmark.py`` measures, with random weights and images."""

import contextlib
from typing import Callable, Dict

from tood.utils import logs  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from tood.config.read import load_config
from tood.engine.step import make_grad_scaler
from tood.modeling.detector import PRECISIONS

RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
AFTER_WARMUP = 10**9  # an iteration at which TAL assigns


class Subject:
    """One detector, its optimizer and its inputs."""

    def __init__(self, name, args):
        """
        Args:
            name: "TOOD" or "RetinaNet".
            args: arguments of ``benchmark.py``.
        """
        self.name, self.args = name, args
        own_dtype = name == "TOOD" or args.same_dtype
        self.dtype = PRECISIONS[args.dtype if own_dtype else "float32"]
        self.model = build(name, args)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        # So small a rate that the model stays as it is.
        self.optimizer = torch.optim.SGD(parameters, 1e-9, momentum=0.9)
        self.inputs = make_inputs(args)
        # As in training: float16 loses small gradients otherwise.
        scaled = self.dtype == torch.float16 and args.device.startswith("cuda")
        self.scaler = make_grad_scaler(scaled)

    def autocast(self):
        if self.dtype == torch.float32:  # PyTorch 2.0 refuses it for CPUs even if it is turned off
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.args.device).type, self.dtype)

    def step(self):
        self.model.train()
        with EventStorage(AFTER_WARMUP):
            with self.autocast():
                losses = sum(self.model(self.inputs).values())
            self.optimizer.zero_grad()
            self.scaler.scale(losses).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()

    @torch.no_grad()
    def inference(self):
        self.model.eval()
        with self.autocast():
            self.model(self.inputs)

    @torch.no_grad()
    def run_head(self, features):
        with self.autocast():
            return self.model.head(features)

    @torch.no_grad()
    def features(self):
        self.model.eval()
        with self.autocast():
            images = self.model.preprocess_image(self.inputs)
            features = self.model.backbone(images.tensor)
        return images, [features[f] for f in self.model.head_in_features]

    def set_threshold(self):
        """Set the score threshold that ``candidates`` detections of an image pass."""
        predictions = self.run_head(self.features()[1])
        if self.name == "TOOD":
            scores = predictions.pred_scores.flatten()
        else:
            scores = torch.cat([x.flatten() for x in predictions[0]]).sigmoid()
        count = min(self.args.candidates * self.args.batch, len(scores))
        threshold = scores.float().topk(count).values[-1].item()
        key = "score_thresh_test" if self.name == "TOOD" else "test_score_thresh"
        setattr(self.model, key, threshold)


def build(name, args):
    """Return a model with random weights; only TOOD is compiled."""
    if name == "TOOD":
        cfg = load_config(args.config_file, args.opts)
    else:
        cfg = detectron2_zoo.get_config(RETINANET)
        cfg.MODEL.RETINANET.NUM_CLASSES = args.num_classes
    cfg.MODEL.DEVICE = args.device
    torch.manual_seed(0)
    model = build_model(cfg)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if name == "TOOD" and args.compile:
        model.backbone.compile()
        model.head.compile()
    return model


def make_inputs(args):
    """Return random images with boxes of 16 to 272 pixels, clipped to them."""
    generator = torch.Generator().manual_seed(0)
    height, width = args.size
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    inputs = []
    for _ in range(args.batch):
        centers = torch.rand(args.objects, 2, generator=generator) * limits[:2]
        halves = torch.rand(args.objects, 2, generator=generator) * 128 + 8
        boxes = torch.cat([centers - halves, centers + halves], dim=1)
        gt = Instances((height, width))
        gt.gt_boxes = Boxes(torch.minimum(boxes.clamp(min=0), limits))
        gt.gt_classes = torch.randint(args.num_classes, (args.objects,), generator=generator)
        image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
        image, gt = image.to(args.device), gt.to(args.device)
        inputs.append({"image": image, "instances": gt, "height": height, "width": width})
    return inputs


def make_loss_functions(tood: Subject) -> Dict[str, Callable]:
    """Return functions that compute losses and assignments of fixed predictions."""
    model = tood.model
    images, features = tood.features()
    predictions = tood.run_head(features)
    model.train()
    instances = [x["instances"] for x in tood.inputs]
    leaves = predictions._replace(
        pred_log_scores=predictions.pred_log_scores.requires_grad_(),
        pred_boxes=predictions.pred_boxes.requires_grad_(),
    )

    def losses():
        with EventStorage(AFTER_WARMUP):
            return sum(model.forward_training(images, features, leaves, instances).values())

    def assign(assigner):
        model.label_batch(images, leaves, instances, assigner)

    return {
        "TOOD, forward": losses,
        "TOOD, forward and backward": lambda: losses().backward(),
        "assignment, TAL": lambda: assign(model.assigner),
        "assignment, ATSS": lambda: assign(model.warmup_assigner),
    }
