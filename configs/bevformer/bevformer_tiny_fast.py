# BEVFormer-tiny as published, with the images distorted, normalised, scaled and padded by the model
# on its device: the data workers pass uint8 images and need a fifth of the time. The same weights
# fit, and the input of the network is that of bevformer_tiny.py within rounding
# (tests/integration/test_fast_configs.py).
_base_ = ["./bevformer_tiny.py"]

model = dict(
    data_preprocessor=dict(
        type="ImagePreprocessor",
        mean={{_base_.torchvision_statistics.mean}},
        std={{_base_.torchvision_statistics.std}},
        to_rgb={{_base_.torchvision_statistics.to_rgb}},
        scale=0.5,
        size_divisor=32,
    ),
)
data = dict(
    train=dict(pipeline={{_base_.byte_train_pipeline}}),
    val=dict(pipeline={{_base_.byte_test_pipeline}}),
    test=dict(pipeline={{_base_.byte_test_pipeline}}),
)
