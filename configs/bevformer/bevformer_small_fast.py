# BEVFormer-small as published, with the images distorted, normalised, scaled and padded by the model on its
# device: the data workers hand on bytes and need a fifth of the time. The same weights fit, and the input of
# the network is that of bevformer_small.py within rounding (tests/integration/test_fast_configs.py).
_base_ = ["./bevformer_small.py"]
point_cloud_range = {{_base_.point_cloud_range}}
class_names = {{_base_.class_names}}

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
train_pipeline = [
    dict(type="LoadMultiViewImageFromFiles"),
    dict(type="DrawColorDistortion"),
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True, with_attr_label=False),
    dict(type="ObjectRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="ObjectNameFilter", classes=class_names),
    dict(type="ByteImageFormatBundle3D", class_names=class_names, stack=False),
    dict(type="CustomCollect3D", keys=["gt_bboxes_3d", "gt_labels_3d", "img"]),
]
test_pipeline = [
    dict(type="LoadMultiViewImageFromFiles"),
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(1600, 900),
        pts_scale_ratio=1,
        flip=False,
        transforms=[
            dict(type="ByteImageFormatBundle3D", class_names=class_names, with_label=False),
            dict(type="CustomCollect3D", keys=["img"]),
        ],
    ),
]
data = dict(
    train=dict(pipeline=train_pipeline),
    val=dict(pipeline=test_pipeline),
    test=dict(pipeline=test_pipeline),
)
