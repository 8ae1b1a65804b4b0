"""Properties of runs on a GPU, tested without one: nothing mixes devices, and a training step waits
for no value.
"""

import pytest
import torch
from conftest import CONFIG, TINY
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import dense_detector
from detectron2.utils.env import TORCH_VERSION
from detectron2.utils.events import EventStorage
from fake_tensors import fake_batch, fake_tensors
from torch._subclasses.fake_tensor import DataDependentOutputException

from tood.config.read import load_config
from tood.modeling import postprocess
from tood.modeling.detector import PRECISIONS
from tood.modeling.postprocess import Candidates

# Older versions end the process in a convolution of fake CUDA tensors (seen with 2.8).
pytestmark = pytest.mark.skipif(TORCH_VERSION < (2, 11), reason="PyTorch cannot fake it")

DEVICE = "cuda:0"
VARIANTS = {
    "task-aligned": [],
    "anchor-based": ["MODEL.TOOD.ANCHOR_TYPE", "anchor_based"],
    "deformable": ["MODEL.TOOD.NUM_DCN_CONVS", "1", "MODEL.RESNETS.DEPTH", "50"],
    "parallel": ["MODEL.TOOD.HEAD", "parallel", "MODEL.TOOD.ASSIGNER", "atss"],
    "no alignment": ["MODEL.TOOD.ALIGN_CLS", "False", "MODEL.TOOD.ALIGN_BOX", "False"],
}
# Images of unequal sizes, one without objects; or all without.
SIZES = [(60, 90), (64, 80)]
COUNTS = [(3, 0), (0, 0)]


@pytest.fixture(scope="module", params=list(VARIANTS))
def model(request):
    opts = [*TINY, "MODEL.TOOD.NUM_CLASSES", "4", "MODEL.TOOD.ATSS_ITERS", "10"]
    return build_model(load_config(CONFIG, [*opts, *VARIANTS[request.param]]))


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("iteration", [0, 20])
def test_a_training_step_waits_for_nothing(model, counts, iteration):
    with fake_tensors(model, DEVICE), EventStorage(iteration):
        losses = model.train()(fake_batch(SIZES, counts))
    assert {x.device for x in losses.values()} == {torch.device(DEVICE)}
    assert all(x.requires_grad and x.shape == () for x in losses.values())


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_training_step_in_half_precision(model, precision):
    dtypes = []
    hook = model.head.cls_pred.register_forward_hook(lambda _, __, x: dtypes.append(x.dtype))
    model.precision_train = precision
    try:
        with fake_tensors(model, DEVICE), EventStorage(20):
            losses = model.train()(fake_batch(SIZES, COUNTS[0]))
    finally:
        model.precision_train = "float32"
        hook.remove()
    assert set(dtypes) == {PRECISIONS[precision]}
    assert {x.dtype for x in losses.values()} == {torch.float32}


def test_inference_waits_once(model, monkeypatch):
    """It waits for the numbers of candidates. With given ones, and an NMS that keeps the first, all
    steps before and after it wait for nothing.
    """
    with fake_tensors(model, DEVICE), torch.no_grad(), pytest.raises(DataDependentOutputException):
        model.eval()(fake_batch(SIZES, COUNTS[0]))
    asked = []

    def use_five(self, image_sizes):
        asked.append(self.counts.device)
        return to_instances(self._replace(counts=Given([5] * len(image_sizes))), image_sizes)

    def first(boxes, scores, groups, threshold):
        return torch.arange(min(3, len(boxes)), device=boxes.device)

    to_instances = Candidates.to_instances
    monkeypatch.setattr(Candidates, "to_instances", use_five)
    monkeypatch.setattr(postprocess, "batched_nms", first)
    monkeypatch.setattr(dense_detector, "detector_postprocess", lambda x, height, width: x)
    with fake_tensors(model, DEVICE), torch.no_grad():
        found = [x["instances"] for x in model.eval()(fake_batch(SIZES, COUNTS[0]))]
    assert asked == [torch.device(DEVICE)]
    for x in found:
        assert len(x) == 3 and x.pred_boxes.device == x.scores.device == torch.device(DEVICE)


class Given:
    """Numbers that are known."""

    def __init__(self, numbers):
        self.numbers = numbers

    def tolist(self):
        return self.numbers


def test_a_mixture_of_devices_is_an_error(model):
    """Or the tests above could not fail."""
    with fake_tensors(model, DEVICE), EventStorage(0):
        model.head.cls_pred.weight = torch.nn.Parameter(
            torch.empty(model.head.cls_pred.weight.shape)
        )
        with pytest.raises(RuntimeError, match="(?i)device"):
            model.train()(fake_batch(SIZES, COUNTS[0]))
