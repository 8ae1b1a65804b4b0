"""The detectors that ``benchmark.py`` and ``benchmark_gpu.py`` measure, with random weights and
images.
"""

from tood.utils import quiet  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from tood.config.read import load_config
from tood.engine.step import make_grad_scaler
from tood.modeling.detector import PRECISIONS

RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
FASTER_RCNN = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
AFTER_WARMUP = 10**9  # an iteration at which TAL assigns


class Subject:
    """One detector with what it takes to run it."""

    def __init__(self, name, model, args, dtype):
        self.name, self.model, self.args, self.dtype = name, model, args, dtype
        parameters = [p for p in model.parameters() if p.requires_grad]
        # So small a rate that the model stays as it is.
        self.optimizer = torch.optim.SGD(parameters, 1e-9, momentum=0.9)
        self.inputs = make_inputs(args)
        # As in training, where float16 loses small gradients otherwise.
        scaled = dtype == torch.float16 and args.device.startswith("cuda")
        self.scaler = make_grad_scaler(scaled)

    def autocast(self):
        enabled = self.dtype != torch.float32
        return torch.autocast(torch.device(self.args.device).type, self.dtype, enabled=enabled)

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
    def features(self):
        self.model.eval()
        with self.autocast():
            images = self.model.preprocess_image(self.inputs)
            features = self.model.backbone(images.tensor)
        return images, [features[f] for f in self.model.head_in_features]

    @torch.no_grad()
    def set_threshold(self):
        """The score threshold that ``--candidates`` detections of an image pass."""
        _, features = self.features()
        with self.autocast():
            predictions = self.model.head(features)
        if self.name == "TOOD":
            scores = predictions.pred_scores
        else:
            scores = torch.cat([x.flatten(1) for x in predictions[0]], dim=1).sigmoid()
        for key in ("score_thresh_test", "test_score_thresh"):
            if hasattr(self.model, key):
                setattr(self.model, key, self.threshold_of(scores))

    def threshold_of(self, scores):
        """The score that as many are above as there shall be candidates in all images."""
        count = min(self.args.candidates * self.args.batch, scores.numel())
        return scores.float().flatten().topk(count).values[-1].item()


class TwoStageSubject(Subject):
    """Detectron2's Faster R-CNN."""

    @torch.no_grad()
    def set_threshold(self):
        self.model.eval()
        heads = self.model.roi_heads
        with self.autocast():
            images = self.model.preprocess_image(self.inputs)
            features = self.model.backbone(images.tensor)
            proposals, _ = self.model.proposal_generator(images, features)
            maps = [features[f] for f in heads.box_in_features]
            x = heads.box_head(heads.box_pooler(maps, [p.proposal_boxes for p in proposals]))
            scores = heads.box_predictor.predict_probs(heads.box_predictor(x), proposals)
        background = -1  # the last class
        threshold = self.threshold_of(torch.cat(scores)[:, :background])
        heads.box_predictor.test_score_thresh = threshold


def make_inputs(args):
    """Random images, with boxes of 16 to 272 pixels that lie inside of them."""
    generator = torch.Generator().manual_seed(0)
    height, width = args.size
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    inputs = []
    for _ in range(args.batch):
        centers = torch.rand(args.objects, 2, generator=generator) * limits[:2]
        halves = torch.rand(args.objects, 2, generator=generator) * 128 + 8
        boxes = torch.cat([centers - halves, centers + halves], dim=1)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.minimum(boxes.clamp(min=0), limits))
        instances.gt_classes = torch.randint(args.num_classes, (args.objects,), generator=generator)
        image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
        inputs.append(
            {
                "image": image.to(args.device),
                "instances": instances.to(args.device),
                "height": height,
                "width": width,
            }
        )
    return inputs


def make_tood(args):
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = args.device
    torch.manual_seed(0)
    model = build_model(cfg)
    if args.compile:
        model.backbone.compile()
        model.head.compile()
    return Subject("TOOD", model, args, PRECISIONS[args.dtype])


def make_retinanet(args, dtype=torch.float32):
    """Without compilation; what the ratios are of."""
    return Subject("RetinaNet", _build(RETINANET, "RETINANET", args), args, dtype)


def make_faster_rcnn(args, dtype=torch.float32):
    """Without compilation."""
    return TwoStageSubject("Faster R-CNN", _build(FASTER_RCNN, "ROI_HEADS", args), args, dtype)


def _build(name, node, args):
    cfg = detectron2_zoo.get_config(name)
    cfg.MODEL.DEVICE = args.device
    cfg.MODEL[node].NUM_CLASSES = args.num_classes
    torch.manual_seed(0)
    return build_model(cfg)
