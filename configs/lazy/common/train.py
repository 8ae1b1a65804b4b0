"""Everything except model, data and optimizer. Periods are in iterations, 0 for never."""

train = dict(
    output_dir="./output",
    init_checkpoint="",
    max_iter=87960,  # 12 epochs of 7,330 steps
    amp=dict(enabled=False),  # the half precision of the device, see model.precision_train
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=None),
    eval_period=0,
    log_period=20,
    vis_period=0,  # images for TensorBoard
    device="cuda",
    seed=-1,  # drawn
    cudnn_benchmark=False,
    # At each evaluation: the losses on the test data as well; a moving average of the weights by
    # this decay; how many without a better AP end training; the alignment of scores and boxes.
    val_loss=False,
    ema_decay=0.0,
    early_stop_patience=0,
    max_dead_iters=200,  # without learning, which end training
    eval_alignment=False,
    report=False,  # of the best weights, when training ends
    # Large images in tiles: side and overlap in pixels (0: whole images); how much of an object a
    # tile must show, and how many tiles without objects are trained on for each with objects.
    tiles=dict(size=0, overlap=0, min_visible=0.5, empty_share=0.2),
    # Evaluation in several sizes and flipped, besides.
    test_aug=dict(
        enabled=False,
        min_sizes=[400, 500, 600, 700, 800, 900, 1000, 1100, 1200],
        max_size=4000,
        flip=True,
    ),
)
