# BEVFormer-small as published, with the images distorted, normalised, scaled and padded by the model on its
# device: the data workers hand on bytes and need a fifth of the time. The same weights fit, and the input of
# the network is that of bevformer_small.py within rounding (tests/integration/test_fast_configs.py).
_base_ = ["./bevformer_small.py"]

model = dict(
    data_preprocessor=dict(
        type="ImagePreprocessor",
        mean=[103.530, 116.280, 123.675],
        std=[1.0, 1.0, 1.0],
        to_rgb=False,
        scale=0.8,
        size_divisor=32,
    ),
)
data = dict(
    train=dict(pipeline={{_base_.byte_train_pipeline}}),
    val=dict(pipeline={{_base_.byte_test_pipeline}}),
    test=dict(pipeline={{_base_.byte_test_pipeline}}),
)
