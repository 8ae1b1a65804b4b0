"""The task-aligned head with an uncertainty for each side of a box."""

from torch import nn

from tood.modeling.dense_head import HEAD_REGISTRY
from tood.modeling.head import TOODHead


@HEAD_REGISTRY.register()
class UncertainHead(TOODHead):
    def __init__(self, cfg, input_shape):
        super().__init__(cfg, input_shape)
        self.uncertainty = nn.Conv2d(input_shape[0].channels, 4, 3, padding=1)

    def _forward_level(self, x):
        maps = super()._forward_level(x)
        return maps._replace(extras={"uncertainty": self.uncertainty(x).exp()})
