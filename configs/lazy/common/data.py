"""COCO. ``names`` takes "ANNOTATIONS.json:IMAGES" as well, or a list."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts

from tood.data.loader import build_training_loader
from tood.data.mapper import CheckedMapper
from tood.evaluation.coco import CleanCOCOEvaluator

dataloader = dict(
    train=L(build_training_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_train", filter_empty=True),
        mapper=L(CheckedMapper)(
            is_train=True,
            augmentations=[
                L(T.ResizeShortestEdge)(
                    short_edge_length=[800], max_size=1333, sample_style="choice"
                ),
                L(T.RandomFlip)(horizontal=True),
            ],
            image_format="RGB",  # model.input_format
        ),
        total_batch_size=16,
        aspect_ratio_grouping=True,
        num_workers=4,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
        mapper=L(CheckedMapper)(
            is_train=False,
            augmentations=[
                L(T.ResizeShortestEdge)(
                    short_edge_length=800, max_size=1333, sample_style="choice"
                ),
            ],
            image_format="${...train.mapper.image_format}",
        ),
        num_workers="${..train.num_workers}",
    ),
    evaluator=L(CleanCOCOEvaluator)(
        dataset_name="${..test.dataset.names}",
        output_dir=None,  # train_net.py writes to train.output_dir
    ),
)
