"""RegNetX-4GF, of both versions of Detectron2."""

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.modeling.backbone import RegNet
from detectron2.modeling.backbone.regnet import ResBottleneckBlock, SimpleStem

from tood.model_zoo import get_config_file

_released = LazyConfig.load(get_config_file("tood_R50_FPN_1x.py"))
model, dataloader, train = _released.model, _released.dataloader, _released.train
optimizer, lr_multiplier = _released.optimizer, _released.lr_multiplier

model.backbone.bottom_up = L(RegNet)(
    stem_class=SimpleStem,
    stem_width=32,
    block_class=ResBottleneckBlock,
    depth=23,
    w_a=38.65,
    w_0=96,
    w_m=2.43,
    group_width=40,
    freeze_at=2,
    out_features=["s2", "s3", "s4"],
)
