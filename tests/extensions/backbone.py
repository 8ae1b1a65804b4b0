"""Five strided convolutions, from an image to the maps p3 to p7."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

STRIDES = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}


@BACKBONE_REGISTRY.register()
class FiveConvs(Backbone):
    def __init__(self, cfg, input_shape):
        super().__init__()
        self.channels = cfg.MODEL.FPN.OUT_CHANNELS
        self.stem = nn.Conv2d(input_shape.channels, self.channels, 7, stride=8, padding=3)
        convs = [nn.Conv2d(self.channels, self.channels, 3, 2, padding=1) for _ in range(4)]
        self.convs = nn.ModuleList(convs)

    def forward(self, images):
        maps = [self.stem(images)]
        for conv in self.convs:
            maps.append(conv(maps[-1].relu()))
        return dict(zip(STRIDES, maps))

    def output_shape(self):
        return {
            name: ShapeSpec(channels=self.channels, stride=stride)
            for name, stride in STRIDES.items()
        }

    @property
    def size_divisibility(self):
        return 32
