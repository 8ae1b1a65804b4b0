"""Metrics, drawings, averages and the best weights of a training."""

import json
import logging

import numpy as np
import pytest
import torch
from conftest import get_error
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage

import train_net
from tood.engine import train as engine_train
from tood.engine.hooks import BestWeights, WeightAverage
from tood.engine.watch import StatusPrinter, assignment_statistics
from tood.evaluation.coco import validation_loss
from tood.modeling.detector import Targets


def random_targets(images, locations, classes, objects):
    generator = torch.Generator().manual_seed(3)
    gt_index = torch.randint(-3, objects, (images, locations), generator=generator).clamp(min=-1)
    corners = torch.rand(2, images, locations, 2, generator=generator) * 20
    boxes = torch.cat([corners[0], corners[0] + 5 + corners[1]], dim=-1)
    targets = Targets(
        gt_index=gt_index,
        gt_classes=torch.randint(classes, gt_index.shape, generator=generator),
        gt_boxes=boxes + torch.rand(boxes.shape, generator=generator) * 4,
        cls_targets=torch.rand(gt_index.shape, generator=generator) * (gt_index >= 0),
        box_weights=torch.zeros(gt_index.shape),
        valid=torch.ones(gt_index.shape, dtype=torch.bool),
    )
    scores = torch.rand(images, locations, classes, generator=generator)
    return scores.log(), boxes, targets


def test_statistics_against_a_loop():
    log_scores, boxes, targets = random_targets(images=2, locations=40, classes=3, objects=9)
    scores, ious, aims, found = [], [], [], set()
    for i in range(2):
        for r in range(40):
            if targets.gt_index[i, r] < 0:
                continue
            scores.append(log_scores[i, r, targets.gt_classes[i, r]].exp().item())
            pair = Boxes(boxes[i, r][None]), Boxes(targets.gt_boxes[i, r][None])
            ious.append(pairwise_iou(*pair).item())
            aims.append(targets.cls_targets[i, r].item())
            found.add((i, targets.gt_index[i, r].item()))
    assert 10 < len(found) < 18
    statistics = assignment_statistics(log_scores, boxes, targets, num_objects=[9, 12])
    expected = {
        "positives_per_object": len(scores) / 21,
        "objects_without_positive": (21 - len(found)) / 21,
        "mean_target": np.mean(aims),
        "mean_iou": np.mean(ious),
        "score_iou_correlation": np.corrcoef(scores, ious)[0, 1],
    }
    assert statistics == pytest.approx(expected, rel=1e-4)


def test_statistics_without_objects_or_positives():
    log_scores, boxes, targets = random_targets(images=1, locations=5, classes=3, objects=2)
    targets = targets._replace(gt_index=torch.full((1, 5), -1))
    assert assignment_statistics(log_scores, boxes, targets, [0]) == {}
    nothing = {"positives_per_object": 0, "objects_without_positive": 1}
    assert assignment_statistics(log_scores, boxes, targets, [3]) == nothing
    targets.gt_index[0, 2] = 1  # one positive has no correlation
    assert "score_iou_correlation" not in assignment_statistics(log_scores, boxes, targets, [3])


def test_status_line(caplog):
    with EventStorage() as storage, caplog.at_level(logging.INFO, logger="tood"):
        storage.put_scalars(**{"time": 0.5, "assignment/mean_iou": 0.625, "loss_cls": 3.0})
        StatusPrinter(ims_per_batch=8).write()
        assert storage.latest()["images_per_second"][0] == 16
        assert 10 < storage.latest()["memory_mb"][0] < 1e6
    assert "mean IoU 0.62  images per second 16.0  memory " in caplog.text


@pytest.mark.slow
def test_all_that_can_be_watched(command, out):
    opts = ["SOLVER.MAX_ITER", "21", "MODEL.TOOD.ATSS_ITERS", "10", "VIS_PERIOD", "20"]
    opts += ["TEST.EVAL_PERIOD", "8", "MODEL.TOOD.VAL_LOSS", "True", "MODEL.TOOD.EMA_DECAY", "0.9"]
    train_net.cli(command(opts=opts))
    metrics = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert {
        *("assignment/mean_iou", "assignment/objects_without_positive", "bbox/AP", "ema/bbox/AP"),
        *("images_per_second", "memory_mb", "val_loss/loss_cls", "val_loss/loss_box_reg"),
    } <= set().union(*metrics)
    log = (out / "log.txt").read_text()
    assert log.count("is the best so far") >= 1 and "positives per object" in log
    events = [p.read_bytes() for p in out.glob("events.out.tfevents.*")]
    assert any(b"training" in e and b"\x89PNG" in e for e in events)

    # Both files are weights like any other, and detect what they did.
    best = torch.load(out / "model_best.pth", weights_only=True)
    candidates = [
        line[key] for line in metrics for key in ("bbox/AP", "ema/bbox/AP") if key in line
    ]
    assert best["AP"] == max(candidates)
    for name, key in (("model_best", None), ("model_final_ema", "ema/bbox/AP")):
        weights = ["MODEL.WEIGHTS", str(out / f"{name}.pth"), "OUTPUT_DIR", str(out / name)]
        args = train_net.parse_args(command("--eval-only", opts=weights))
        AP = engine_train.main(args)["bbox"]["AP"]
        assert pytest.approx(AP) == (metrics[-1][key] if key else best["AP"])
    assert (out / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.slow
def test_training_ends_when_it_gets_no_better(command, out):
    opts = ["SOLVER.BASE_LR", "1e-12", "TEST.EVAL_PERIOD", "1", "SOLVER.MAX_ITER", "50"]
    opts += ["MODEL.TOOD.EMA_DECAY", "0.5", "MODEL.TOOD.EARLY_STOP_PATIENCE", "1"]
    train_net.cli(command(opts=opts))
    train_net.cli(command("--resume", opts=opts))  # and stays stopped
    log = (out / "log.txt").read_text()
    assert log.count("Stopped after iteration 1: 1 evaluations in a row have found nothing") == 2
    assert torch.load(out / "model_final.pth", weights_only=False)["iteration"] == 1
    opts[-1] = "2"  # more patience: another evaluation
    train_net.cli(command("--resume", opts=opts))
    log = (out / "log.txt").read_text()
    assert "Stopped after iteration 2: 2 evaluations in a row have found nothing better" in log
    assert "Traceback" not in log
    assert torch.load(out / "model_final.pth", weights_only=False)["iteration"] == 2
    assert (out / "model_final_ema.pth").exists() and (out / "model_best.pth").exists()


@pytest.mark.slow
def test_the_average_alone_is_evaluated(command, out):
    opts = ["MODEL.TOOD.EMA_DECAY", "0.5", "MODEL.TOOD.EVAL_EMA_ALONE", "True"]
    opts += ["TEST.EVAL_PERIOD", "4", "MODEL.TOOD.SCORE_THRESH_TEST", "0.0"]
    trainer = engine_train.main(train_net.parse_args(command(opts=opts)))
    metrics = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    APs = [line["ema/bbox/AP"] for line in metrics if "ema/bbox/AP" in line]
    assert len(APs) == 1 and trainer._last_eval_results["bbox"]["AP"] == APs[0]
    assert not any("bbox/AP" in line for line in metrics)
    best = torch.load(out / "model_best.pth", weights_only=True)
    assert best["AP"] == APs[0]
    averaged = torch.load(out / "model_final_ema.pth", weights_only=True)["model"]
    assert all(torch.equal(x, averaged[name]) for name, x in best["model"].items())
    assert (out / "ema" / "inference").is_dir() and not (out / "inference").exists()


def test_patience_needs_evaluations(command):
    message = get_error(command(opts=["MODEL.TOOD.EARLY_STOP_PATIENCE", "2"]))
    assert "EARLY_STOP_PATIENCE is 2" in message and "TEST.EVAL_PERIOD" in message


@pytest.mark.slow
def test_the_best_weights_of_another_training_do_not_count(command, out):
    opts = ["TEST.EVAL_PERIOD", "2"]
    train_net.cli(command(opts=opts))
    best = torch.load(out / "model_best.pth", weights_only=True)
    torch.save({**best, "AP": 99.0, "iteration": 4999}, out / "model_best.pth")
    train_net.cli(command("--resume", opts=[*opts, "SOLVER.MAX_ITER", "6"]))
    assert torch.load(out / "model_best.pth", weights_only=True)["AP"] == 99.0  # its own
    train_net.cli(command(opts=opts))
    assert torch.load(out / "model_best.pth", weights_only=True)["AP"] == best["AP"]


def test_best_weights(tmp_path):
    model = torch.nn.Linear(1, 1)
    best = BestWeights(str(tmp_path))
    best.resume("this")  # there is nothing yet
    for iteration, AP in enumerate((float("nan"), 3.0, 5.0, 4.0, 5.0)):
        torch.nn.init.constant_(model.weight, iteration)
        best.offer(model, AP, iteration, run_id="this", name="weights")
    other = BestWeights(str(tmp_path))
    other.resume("other")
    assert other.AP is None
    resumed = BestWeights(str(tmp_path))
    resumed.resume("this")
    assert (resumed.AP, resumed.iteration) == (best.AP, best.iteration) == (5.0, 2)
    resumed.offer(model, 4.5, 9, run_id="this", name="weights")
    content = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert content["model"]["weight"].item() == 2 and content["AP"] == 5.0
    (tmp_path / "model_best.pth").write_bytes(b"cut off")
    damaged = BestWeights(str(tmp_path))
    damaged.resume("this")
    assert damaged.AP is None


def test_average_of_weights():
    model = torch.nn.BatchNorm1d(1)
    averaged = WeightAverage(model, decay=0.4)
    for value in (1.0, 2.0, 4.0, 8.0):
        torch.nn.init.constant_(model.weight, value)
        averaged.update(model)
    # The first is taken as it is; the decays after it are 2/11, 3/12, 4/13.
    expected = 1.0
    for value, decay in ((2.0, 2 / 11), (4.0, 3 / 12), (8.0, 4 / 13)):
        expected = decay * expected + (1 - decay) * value
    assert averaged.model.weight.item() == pytest.approx(expected)
    for _ in range(20):
        averaged.update(model)
    before = averaged.model.weight.item()
    torch.nn.init.constant_(model.weight, 9.0)
    model.num_batches_tracked += 3
    averaged.update(model)
    assert averaged.model.weight.item() == pytest.approx(0.4 * before + 0.6 * 9)
    assert averaged.model.num_batches_tracked == 3
    copy = WeightAverage(torch.nn.BatchNorm1d(1), decay=0.4)
    copy.load_state_dict(averaged.state_dict())
    assert copy.num_steps == 25 and torch.equal(copy.model.weight, averaged.model.weight)


def test_average_makes_a_gpu_wait_for_nothing(monkeypatch):
    model = torch.nn.Linear(2, 2)
    averaged = WeightAverage(model, decay=0.9)

    def read(self):
        raise AssertionError("a value was read")

    for name in ("__float__", "__bool__", "__int__", "item"):
        monkeypatch.setattr(torch.Tensor, name, read)
    for _ in range(3):
        averaged.update(model)


@pytest.mark.parametrize("warmup", [True, False])
def test_validation_loss_is_the_loss_of_one_batch(tiny_cfg, make_input, warmup):
    tiny_cfg.MODEL.TOOD.ATSS_ITERS = 1
    model = build_model(tiny_cfg).train()
    inputs = [
        make_input(64, 96, [(4.0, 4.0, 60.0, 50.0), (20.0, 10.0, 90.0, 60.0)], classes=[0, 3]),
        make_input(64, 96, []),
        make_input(64, 96, [(8.0, 8.0, 40.0, 48.0), (50.0, 30.0, 90.0, 60.0)], classes=[1, 2]),
    ]
    with EventStorage(start_iter=0 if warmup else 1):
        expected = {k: v.item() for k, v in model(inputs).items()}
    assigner = model.assigner_at(0 if warmup else 1)
    losses = validation_loss(model, [inputs[:1], inputs[1:]], assigner=assigner)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert model.training and all(p.grad is None for p in model.parameters())
