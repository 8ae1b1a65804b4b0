import pytest
from conftest import ROOT
from detectron2.modeling import build_model

from tood import TOOD, model_zoo
from tood.config.read import load_config

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
NAMED = [path for path in CONFIGS if not path.stem.startswith("Base")]


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_builds(path):
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    assert isinstance(model, TOOD)
    assert model.head.cls_pred.out_channels == cfg.MODEL.TOOD.NUM_CLASSES
    finest = 4 if "P2" in path.stem else 8
    assert model.strides == [finest * 2**i for i in range(len(model.strides))]
    assert len(model.strides) == (4 if "Pico" in path.stem else 5)
    assert max(cfg.SOLVER.STEPS) < cfg.SOLVER.MAX_ITER
    # A third of the schedule; of the released ones 4 epochs, also when there are 24.
    warmup = min(cfg.SOLVER.MAX_ITER / 3, 4 * 7330)
    assert cfg.MODEL.TOOD.ATSS_ITERS == pytest.approx(warmup, abs=1)


@pytest.mark.parametrize("path", NAMED, ids=lambda p: p.stem)
@pytest.mark.parametrize("weights", [None, ""])
def test_a_config_by_name_is_what_commands_read(path, weights):
    opts = ["MODEL.DEVICE", "cpu", *([] if weights is None else ["MODEL.WEIGHTS", weights])]
    assert model_zoo.get_config(path.stem, opts) == load_config(str(path), opts)


def test_a_model_by_name_has_its_own_pixels_and_anchors():
    model = model_zoo.get_model("tood_lite0_Pico_small_data", device="cpu")
    assert model.pixel_mean.flatten().tolist() == [127.0] * 3
    anchors = model.head.anchor_generator.cell_anchors
    assert [int(a[0, 2] - a[0, 0]) for a in anchors] == [64, 128, 256, 512]


def test_released_settings():
    cfg = load_config(str(CONFIGS[0].parent / "tood_R50_FPN_1x.yaml"), ["MODEL.DEVICE", "cpu"])
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 2 and not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.IMS_PER_BATCH) == (0.01, 0.9, 16)
    assert cfg.SOLVER.WEIGHT_DECAY == cfg.SOLVER.WEIGHT_DECAY_NORM == 1e-4
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS in (None, 1e-4)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR) == (500, 0.001)
    tood = cfg.MODEL.TOOD
    assert (tood.TAL_TOPK, tood.TAL_ALPHA, tood.TAL_BETA, tood.ATSS_TOPK) == (13, 1.0, 6.0, 9)
    assert (tood.SCORE_THRESH_TEST, tood.TOPK_CANDIDATES_TEST) == (0.05, 1000)
    assert (tood.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (0.6, 100)


def test_released_schedule():
    cfg = load_config(str(CONFIGS[0].parent / "tood_R50_FPN_1x.yaml"), ["MODEL.DEVICE", "cpu"])
    steps_an_epoch = -(-117_266 // cfg.SOLVER.IMS_PER_BATCH)
    assert cfg.SOLVER.MAX_ITER == 12 * steps_an_epoch
    assert cfg.SOLVER.STEPS == (8 * steps_an_epoch, 11 * steps_an_epoch)
    assert cfg.MODEL.TOOD.ATSS_ITERS == 4 * steps_an_epoch
