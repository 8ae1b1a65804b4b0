"""The learning rate's factor over a training. Warm-up and steps are shares of it: another
``train.max_iter`` moves them.
"""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler


def multi_step(milestones, warmup_iters):
    """
    Args:
        milestones: iterations of the steps, each to a tenth, and of the end.
        warmup_iters: of the learning rate.
    """
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[0.1**i for i in range(len(milestones))], milestones=milestones
        ),
        warmup_factor=0.001,
        warmup_length=warmup_iters / milestones[-1],
        warmup_method="linear",
    )


# Epochs of 7,330 steps of 16 images: COCO train2017 has 117,266 images with objects.
lr_multiplier_1x = multi_step([8 * 7330, 11 * 7330, 12 * 7330], warmup_iters=500)
lr_multiplier_2x = multi_step([16 * 7330, 22 * 7330, 24 * 7330], warmup_iters=500)
