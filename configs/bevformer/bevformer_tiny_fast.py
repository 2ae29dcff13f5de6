# BEVFormer-tiny as published, with the images distorted, normalised, scaled and padded by the model on its
# device: the data workers hand on bytes and need a fifth of the time. The same weights fit, and the input of
# the network is that of bevformer_tiny.py within rounding (tests/integration/test_fast_configs.py).
_base_ = ["./bevformer_tiny.py"]

model = dict(
    data_preprocessor=dict(
        type="ImagePreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
        scale=0.5,
        size_divisor=32,
    ),
)
data = dict(
    train=dict(pipeline={{_base_.byte_train_pipeline}}),
    val=dict(pipeline={{_base_.byte_test_pipeline}}),
    test=dict(pipeline={{_base_.byte_test_pipeline}}),
)
