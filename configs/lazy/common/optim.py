import torch
from detectron2.config import LazyCall as L
from detectron2.solver import get_default_optimizer_params

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(
        # "model" is set when there is one.
        base_lr="${..lr}",
        weight_decay_norm="${..weight_decay}",  # on every parameter, norms too
    ),
    lr=0.01,
    momentum=0.9,
    weight_decay=0.0001,
)
