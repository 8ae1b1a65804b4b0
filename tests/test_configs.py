from pathlib import Path

import pytest
from detectron2.modeling import build_model

from tood import TOOD
from tood.engine import load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_builds(path):
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    assert isinstance(model, TOOD)
    assert model.head.cls_pred.out_channels == cfg.MODEL.TOOD.NUM_CLASSES
    assert model.strides == [8, 16, 32, 64, 128]
    assert max(cfg.SOLVER.STEPS) < cfg.SOLVER.MAX_ITER
    assert cfg.MODEL.TOOD.WARMUP_ITERS == pytest.approx(cfg.SOLVER.MAX_ITER / 3, abs=1)


def test_released_schedule():
    cfg = load_config(str(CONFIGS[0].parent / "tood_R50_FPN_1x.yaml"), ["MODEL.DEVICE", "cpu"])
    steps_an_epoch = -(-117_266 // cfg.SOLVER.IMS_PER_BATCH)
    assert cfg.SOLVER.MAX_ITER == 12 * steps_an_epoch
    assert cfg.SOLVER.STEPS == (8 * steps_an_epoch, 11 * steps_an_epoch)
    assert cfg.MODEL.TOOD.WARMUP_ITERS == 4 * steps_an_epoch
