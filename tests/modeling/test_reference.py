"""The project against the reference implementation, on weights that both can rebuild."""

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from reference import PHASES, ROOT, Reference

from tood.checkpoint.names import detectron2_name

SLOW = ["r50_anchor_free", "r50_anchor_based", "r50_dcn"]
NAMES = ["r18_anchor_free", *(pytest.param(x, marks=pytest.mark.slow) for x in SLOW)]

SCORES, BOXES = 1e-5, 1e-2  # probabilities, pixels
TARGETS = 1e-4  # the sixth power of the IoU makes six times as much of a rounding error
LOSSES, GRADIENTS = 1e-4, 1e-3  # relative


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    """Use two threads, like the reference: the order of float32 sums depends on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=NAMES)
def reference(request):
    return Reference(ROOT / "tests" / "fixtures" / f"reference_{request.param}.npz")


@pytest.fixture(scope="module")
def model(reference):
    return reference.model()


@pytest.fixture(scope="module")
def dense(reference, model):
    model.eval()
    with torch.no_grad():
        return model.predict_dense(reference.batched_inputs())


def test_scores(reference, dense):
    expected = reference.flat_levels("cls_score")
    torch.testing.assert_close(dense[0], expected, atol=SCORES, rtol=0)


def test_boxes(reference, dense):
    expected = reference.flat_levels("bbox_pred", scale_by_stride=True)
    torch.testing.assert_close(dense[1], expected, atol=BOXES, rtol=0)


def test_detections(reference, model):
    model.eval()
    with torch.no_grad():
        outputs = model(reference.batched_inputs())
    for i, output in enumerate(outputs):
        detections = output["instances"]
        expected_boxes = Boxes(torch.from_numpy(reference[f"det_boxes_{i}"]).float())
        expected_boxes.clip(detections.image_size)
        # Detectron2 drops what lies outside of the image; the reference keeps it.
        seen = expected_boxes.nonempty()
        assert seen.sum() > 50
        expected_boxes = expected_boxes.tensor[seen]
        expected_scores = torch.from_numpy(reference[f"det_scores_{i}"]).float()[seen]
        expected_classes = torch.from_numpy(reference[f"det_classes_{i}"]).long()[seen]
        # Each pair of a detection and an expected one, (D, D'), whether they are the same.
        same = ((detections.scores[:, None] - expected_scores).abs() <= SCORES) & (
            detections.pred_classes[:, None] == expected_classes
        )
        distances = (detections.pred_boxes.tensor[:, None] - expected_boxes).abs().amax(dim=-1)
        same &= distances <= BOXES
        assert same.any(dim=0).all() and same.any(dim=1).all()


@pytest.mark.parametrize("phase", PHASES)
def test_assignment(reference, model, phase):
    inputs = reference.batched_inputs()
    images = model.preprocess_image(inputs)
    with torch.no_grad():
        features = model.backbone(images.tensor)
        predictions = model.head([features[f] for f in model.head_in_features])
    gt_instances = [x["instances"] for x in inputs]
    targets = model.label_batch(
        images, predictions, gt_instances, model.assigner_at(PHASES.index(phase))
    )
    K = reference.meta["classes"]
    labels = torch.where(targets.positive, targets.gt_classes, K)
    expected_labels = torch.from_numpy(reference[f"{phase}_labels"]).long()
    assert (expected_labels < K).sum() > 0
    assert torch.equal(labels, expected_labels)
    metric = targets.cls_targets
    expected_metric = torch.from_numpy(reference[f"{phase}_target_metric"]).float()
    torch.testing.assert_close(metric, expected_metric, atol=TARGETS, rtol=0)


@pytest.mark.parametrize("phase", PHASES)
def test_losses_and_gradients(reference, model, phase):
    model.train()
    model.zero_grad()
    with EventStorage(start_iter=PHASES.index(phase)):
        losses = model(reference.batched_inputs())
    assert losses["loss_cls"].item() == pytest.approx(
        float(reference[f"{phase}_loss_cls"]), rel=LOSSES
    )
    assert losses["loss_box_reg"].item() == pytest.approx(
        float(reference[f"{phase}_loss_bbox"]), rel=LOSSES
    )

    sum(losses.values()).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    expected_norms = {
        detectron2_name(n): norm for n, norm in reference.json(f"{phase}_grad_norm").items()
    }
    assert set(grads) == set(expected_norms)
    for name, norm in expected_norms.items():
        assert grads[name].norm().item() == pytest.approx(norm, rel=GRADIENTS, abs=1e-7), name
    whole = [key for key in reference.arrays.files if key.startswith(f"{phase}_grad:")]
    assert whole
    for key in whole:
        name = detectron2_name(key.split(":", 1)[1])
        expected = torch.from_numpy(reference[key]).float().view_as(grads[name])
        difference = (grads[name] - expected).norm() / expected.norm()
        assert difference.item() < GRADIENTS, name
