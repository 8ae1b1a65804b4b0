"""The reference implementation's outputs (MMDetection 3.3.0), and a model with its weights."""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from tood.checkpoint.convert import identify, to_detectron2

ROOT = Path(__file__).parents[1]
PHASES = ("warmup", "tal")


class Reference:
    """One file of reference outputs.

    The weights are not in it: each is drawn from a generator that its name seeds, and scaled by
    a rule that depends on the name as well.
    """

    def __init__(self, path):
        self.arrays = np.load(path)
        self.meta = json.loads(str(self.arrays["meta"]))
        self.state_shapes = dict(json.loads(str(self.arrays["state_dict"])))

    def __getitem__(self, key):
        return self.arrays[key]

    def json(self, key):
        return json.loads(str(self.arrays[key]))

    def state_dict(self):
        """MMDetection name -> tensor; the dict is the caller's."""
        return dict(self._weights)

    @functools.cached_property
    def _weights(self):
        return {n: self._weight(n, shape) for n, shape in self.state_shapes.items()}

    def model(self):
        """The project's model with the reference's weights, through the converter, from nothing but
        names, shapes and the name of the reference's config. The warm-up is iteration 0 only.
        """
        state_dict = self.state_dict()
        meta = {"config": f"{self.meta['config']} {self.meta['anchor_type']}"}
        cfg = identify(state_dict, meta).make_config()
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.TOOD.ATSS_ITERS = 1
        model = build_model(cfg)
        weights = to_detectron2(state_dict, model.state_dict())
        model.load_state_dict(weights, strict=True)
        return model

    def batched_inputs(self):
        """RGB images with their objects, as Detectron2's mapper gives them."""
        inputs = []
        for i, bgr in enumerate(self["image_bgr"]):
            image = torch.from_numpy(bgr[::-1].copy())
            instances = Instances(tuple(image.shape[1:]))
            instances.gt_boxes = Boxes(torch.from_numpy(self[f"gt_boxes_{i}"]).float())
            instances.gt_classes = torch.from_numpy(self[f"gt_classes_{i}"]).long()
            inputs.append({"image": image, "instances": instances})
        return inputs

    def flat_levels(self, key, scale_by_stride=False):
        """(N, K, h, w) of each level -> (N, R, K)."""
        levels = []
        for level in range(5):
            x = torch.from_numpy(self[f"{key}_{level}"]).float()
            x = x.flatten(2).transpose(1, 2)
            levels.append(x * 2 ** (level + 3) if scale_by_stride else x)
        return torch.cat(levels, dim=1)

    def _weight(self, name, shape):
        seed = (zlib.crc32(name.encode()) ^ self.meta["seed"]) & 0xFFFFFFFF
        x = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 1
        if name.endswith("num_batches_tracked"):
            return torch.zeros((), dtype=torch.int64)
        return torch.from_numpy(np.asarray(_scaled(x, name, shape, fan_in, self.meta), np.float32))


def _scaled(x, name, shape, fan_in, meta):
    anchor_free = meta["anchor_type"] == "anchor_free"
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(x)
    if name.endswith("running_mean"):
        return 0.1 * x
    if name.endswith(".scale"):
        return 1 + 0.1 * x
    if "conv_offset" in name:
        scale = 0.3 * meta.get("offset_scale", 1)
        return scale * x / np.sqrt(fan_in) if name.endswith("weight") else 0.1 * x
    if name.endswith("tood_cls.bias"):
        return -2 + 0.1 * x
    if name.endswith("tood_cls.weight"):
        return 1.5 * x / np.sqrt(fan_in)
    if name.endswith("tood_reg.weight"):
        return 0.3 * x / np.sqrt(fan_in)
    if name.endswith("tood_reg.bias"):
        return 1.2 + 0.1 * x if anchor_free else 0.1 * x
    if len(shape) <= 1:
        return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
    return x * np.sqrt(2 / fan_in)
