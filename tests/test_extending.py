"""The tasks of docs/extending.md, each in one short file outside of the package."""

import json
import math
import re

import pytest
import torch
from conftest import (
    CONFIG,
    EXTENSIONS,
    ROOT,
    SMALL,
    assert_from_their_locations,
    complaint,
    load_extension,
)
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from detectron2.utils.registry import Registry

import train_net
from tood.config.build import build_detector, check_builds
from tood.config.check import check_config
from tood.config.options import TrainingOptions, TTAOptions, get_finest_stride
from tood.config.read import load_config, run_options
from tood.config.unread import check_unread, has_parts_of_a_user
from tood.data.datasets import prepare_datasets
from tood.engine.loop import Experiment, LoopOptions, TrainingLoop, check_validation_loss
from tood.engine.trainer import Trainer
from tood.evaluation.coco import validation_loss
from tood.inference.predictor import Predictor
from tood.inference.tta import TOODWithTTA
from tood.modeling.assigners import ImagePredictions
from tood.modeling.dense_head import HEAD_REGISTRY
from tood.modeling.detector import TOOD
from tood.modeling.parallel_head import ParallelHead
from tood.utils.errors import UserError

TASKS = ("assigner", "head", "box_loss", "backbone", "augmentation")


for task in TASKS:
    load_extension(task)


def compute_losses(model, inputs):
    model.train()
    with EventStorage(start_iter=0):
        losses = model(inputs)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_one_short_file_that_the_guide_quotes(name):
    text = (EXTENSIONS / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 40
    assert text in (ROOT / "docs" / "extending.md").read_text()


def test_an_assigner(tiny_cfg, make_input):
    tiny_cfg.MODEL.TOOD.ASSIGNER, tiny_cfg.MODEL.TOOD.ATSS_ITERS = "CenterSampling", 0
    check_config(tiny_cfg)
    model = build_model(tiny_cfg)
    # The location (24, 24) of stride 8 is 4 pixels from the centre of both; the smaller has it.
    anchors = torch.tensor([[-8.0, -8, 56, 56], [72, -8, 136, 56]])
    boxes = torch.tensor([[4.0, 4, 52, 52], [8, 8, 48, 48]])
    gt = Instances((64, 96), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1]))
    assignment = model.assigner(ImagePredictions(None, anchors, anchors, [2, 0, 0, 0, 0]), gt)
    assert assignment.gt_index.tolist() == [1, -1]
    losses = compute_losses(model, [make_input(), make_input(boxes=[])])
    assert losses["loss_box_reg"] > 0 and model.head.reg_pred.weight.grad.abs().sum() > 0


def test_a_box_loss(tiny_cfg, make_input):
    tiny_cfg.MODEL.TOOD.BOX_REG_LOSS, tiny_cfg.MODEL.TOOD.BOX_REG_LOSS_WEIGHT = "WassersteinLoss", 3
    check_config(tiny_cfg)
    assert has_parts_of_a_user(tiny_cfg)
    model = build_model(tiny_cfg)
    assert model.box_reg_loss.unit == 32 and model.box_reg_ceiling == 3
    boxes = torch.tensor([[0.0, 0, 8, 8], [16, 0, 24, 8], [3e4, 0, 3e4 + 8, 8]], requires_grad=True)
    losses = model.box_reg_loss(boxes, torch.tensor([[0.0, 0, 8, 8]]).expand(3, 4))
    # The same box; centres 16 pixels apart, which is half a unit; far apart.
    expected = [0, 1 - math.exp(-0.5), model.box_reg_loss.ceiling]
    assert losses.tolist() == pytest.approx(expected, abs=1e-4)
    losses.sum().backward()
    x_gradients = boxes.grad[:, [0, 2]].sum(dim=1)
    assert x_gradients[1] > 0.01 and x_gradients[[0, 2]].abs().max() < 1e-6
    losses = compute_losses(model, [make_input(), make_input(boxes=[])])
    assert 0 < losses["loss_box_reg"] < 3 and model.head.reg_pred.weight.grad.abs().sum() > 0


def test_a_box_loss_replaces_giou_in_the_sum(tiny_cfg, make_input):
    inputs, found = [make_input()], {}
    for name, loss in (("giou", None), ("two", lambda a, b: 2 + 0 * (a - b).sum(dim=-1))):
        torch.manual_seed(0)
        model = build_model(tiny_cfg)
        model.box_reg_loss = loss or model.box_reg_loss
        found[name] = compute_losses(model, inputs)
    assert found["two"]["loss_cls"] == found["giou"]["loss_cls"]
    assert found["two"]["loss_box_reg"].item() == pytest.approx(2 * 2)  # its weight is 2


def test_augmentations(entry):
    opts = [*SMALL, "MODEL.TOOD.NUM_CLASSES", "4", "DATASETS.TEST", "()"]
    opts += ["INPUT.AUGMENTATIONS", "['Mixup', 'grey']"]
    cfg = load_config(CONFIG, opts, [entry], training=True)
    prepare_datasets(run_options(cfg).data, training=True)
    dataset = Trainer.build_train_loader(cfg).dataset
    images = [dataset[key] for key in range(160)]  # twenty times eight
    number = {x["file_name"]: len(x["annotations"]) for x in dataset.records}
    mixed = [len(x["instances"]) > number[x["file_name"]] for x in images]
    grey = [(x["image"][0].int() - x["image"][2]).abs().max() <= 1 for x in images]
    assert 10 < sum(mixed) < 40 and 4 < sum(grey) < 30
    with pytest.raises(UserError, match="has 'Mixop'; it must contain names of .*, grey, Mixup"):
        load_config(CONFIG, [*opts[:-1], "['Mixop']"])
    # A trained model does not need the file that its augmentations are in.
    cfg.INPUT.AUGMENTATIONS = ["Gone"]
    check_config(cfg)


def test_an_unknown_part_is_named_with_the_known_ones(tiny_cfg):
    tiny_cfg.MODEL.TOOD.BOX_REG_LOSS = "goiu"
    with pytest.raises(UserError, match="BOX_REG_LOSS is 'goiu'; .* one of giou, WassersteinLoss"):
        check_config(tiny_cfg)


def test_a_backbone(tiny_cfg, make_input):
    tiny_cfg.MODEL.BACKBONE.NAME, tiny_cfg.MODEL.TOOD.ATSS_ITERS = "FiveConvs", 0
    check_config(tiny_cfg)
    model = build_model(tiny_cfg)
    compute_losses(model, [make_input(128, 128), make_input(100, 90)])
    assert model.backbone.stem.weight.grad.abs().sum() > 0
    with torch.no_grad():
        (output,) = model.eval()([make_input(100, 90)])
    assert output["instances"].image_size == (100, 90)


@pytest.fixture
def uncertain(tiny_cfg):
    tiny_cfg.MODEL.TOOD.HEAD = "UncertainHead"
    tiny_cfg.MODEL.TOOD.NUM_CONVS, tiny_cfg.MODEL.TOOD.TOPK_CANDIDATES_TEST = 1, 60
    tiny_cfg.MODEL.TOOD.IN_FEATURES = ["p3", "p6"]
    tiny_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64], [512]]
    tiny_cfg.MODEL.RESNETS.NORM = "BN"
    check_config(tiny_cfg)
    model = build_model(tiny_cfg).eval()
    torch.nn.init.normal_(model.head.cls_pred.weight, std=0.5)
    torch.nn.init.normal_(model.head.reg_pred.weight, std=0.05)
    return model


def test_a_head_with_one_more_output(uncertain, make_input):
    image = make_input(64, 96)
    with torch.no_grad():
        (plain,) = uncertain([image])
    assert_from_their_locations(uncertain, image, plain["instances"])
    (augmented,) = TOODWithTTA(uncertain, TTAOptions(True, [64], 400, flip=False))([image])
    assert torch.equal(augmented["instances"].uncertainty, plain["instances"].uncertainty)


def read_uncertain_tood():
    """Return the class of the guide that trains an extra."""
    text = (ROOT / "docs" / "extending.md").read_text()
    code = re.search(r"```python\n(@META_ARCH_REGISTRY.*?)```", text, re.DOTALL)[1]
    names = {"META_ARCH_REGISTRY": Registry("mine"), "TOOD": TOOD, "torch": torch}
    exec(code, names)
    return names["UncertainTOOD"]


def test_an_extra_with_a_loss(tiny_cfg, make_input):
    tiny_cfg.MODEL.TOOD.HEAD = "UncertainHead"
    model = read_uncertain_tood()(tiny_cfg)
    batch = [make_input(), make_input(boxes=[])]
    losses = compute_losses(model, batch)
    assert losses["loss_uncertainty"].isfinite() and losses["loss_uncertainty"] != 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert model.head.uncertainty.weight.grad.abs().sum() > 0
    # The same batch in validation has the same losses: no part depends on the mode.
    found = validation_loss(model, [batch], assigner=model.assigner_at(0))
    assert found == pytest.approx({k: v.item() for k, v in losses.items()}, rel=1e-3)


class TwoLosses(TOOD):
    def losses(self, predictions, targets, assigner):
        losses = super().losses(predictions, targets, assigner)
        return {**losses, "loss_two": predictions.pred_scores.mean()}


class TwoLossesAndSums(TwoLosses):
    def compute_loss_sums(self, batched_inputs, assigner):
        return super().compute_loss_sums(batched_inputs, assigner)


def test_validation_losses_that_would_lack_one_are_refused(tiny_cfg, tmp_path):
    for allowed in (TOOD, read_uncertain_tood(), TwoLossesAndSums):
        check_validation_loss(allowed)
    message = complaint(check_validation_loss, TwoLosses)
    assert message.startswith("MODEL.TOOD.VAL_LOSS is True, but TwoLosses changes losses, which")
    assert "extend sum_losses in its place" in message
    model = TwoLosses(tiny_cfg)
    options = LoopOptions(str(tmp_path), 1, 1, [], training=TrainingOptions(val_loss=True))
    parts = dict(optimizer=None, scheduler=None, train_loader=[], evaluate=None)
    experiment = Experiment(model=model, validation_loaders=dict, options=options, **parts)
    assert complaint(TrainingLoop, experiment) == message


def test_a_predictor_of_a_users_architecture(tiny_cfg, tmp_path):
    class MyTOOD(TOOD):
        pass

    META_ARCH_REGISTRY.register(MyTOOD)
    tiny_cfg.MODEL.META_ARCHITECTURE = "MyTOOD"
    model = build_model(tiny_cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    assert isinstance(Predictor(tiny_cfg, tmp_path / "a.pth").model, MyTOOD)
    tiny_cfg.MODEL.META_ARCHITECTURE = "Nonsense"
    assert "META_ARCHITECTURE" in complaint(Predictor, tiny_cfg, tmp_path / "a.pth")


@pytest.mark.slow
def test_an_architecture_of_a_user_from_the_command_to_the_folder(command, out, make_input):
    META_ARCH_REGISTRY.register(read_uncertain_tood())
    parts = ["MODEL.META_ARCHITECTURE", "UncertainTOOD", "MODEL.TOOD.HEAD", "UncertainHead"]
    train_net.cli(command(opts=parts))
    rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert any("loss_uncertainty" in row for row in rows)
    predictor = Predictor(str(out))
    assert type(predictor.model).__name__ == "UncertainTOOD"
    assert predictor.model.num_classes == 4
    # Its options are checked as TOOD's are.
    with pytest.raises(UserError, match="MODEL.TOOD.TAL_TOPK is -5"):
        load_config(CONFIG, [*parts, "MODEL.TOOD.TAL_TOPK", "-5"])


def test_maps_that_a_users_backbone_does_not_make(tiny_cfg, caplog):
    """One sentence, as for others; and anchors of other sizes than the strides are named."""
    tiny_cfg.MODEL.BACKBONE.NAME = "FiveConvs"
    tiny_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    with caplog.at_level("WARNING"):
        build_detector(tiny_cfg)
    assert "here [[64], [128], [256], [512], [1024]]" in caplog.text
    tiny_cfg.MODEL.TOOD.IN_FEATURES = ["p2", "p3"]
    assert "has 'p2', but FiveConvs makes p3" in complaint(build_detector, tiny_cfg)


def test_strides_of_maps_with_other_names_are_not_guessed():
    assert [get_finest_stride([x]) for x in ("p2", "res4", "s16", "stage1")] == [4, 16, 8, 8]


def test_a_parallel_head_of_a_user_may_have_centerness(tiny_cfg):
    @HEAD_REGISTRY.register()
    class MyParallel(ParallelHead):
        pass

    tood = tiny_cfg.MODEL.TOOD
    tood.HEAD, tood.ASSIGNER, tood.CENTERNESS = "MyParallel", "atss", True
    check_config(tiny_cfg)
    assert build_model(tiny_cfg).head.centerness is not None
    tood.HEAD = "UncertainHead"  # which is task-aligned
    assert "CENTERNESS is True with the head UncertainHead" in complaint(check_config, tiny_cfg)


def test_parts_of_a_user_are_not_tried_without_numbers(tiny_cfg):
    """They may compute with numbers when they are built, as transformers do."""

    @BACKBONE_REGISTRY.register()
    def needs_numbers(cfg, input_shape):
        assert torch.ones(1).item() == 1
        return BACKBONE_REGISTRY.get("FiveConvs")(cfg, input_shape)

    tiny_cfg.MODEL.BACKBONE.NAME = "needs_numbers"
    tiny_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.3  # which it may read
    check_unread(tiny_cfg)
    check_builds(tiny_cfg)
    assert build_model(tiny_cfg).backbone.channels == tiny_cfg.MODEL.FPN.OUT_CHANNELS
