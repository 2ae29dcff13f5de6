# The default recipe: BEVFormer-base at BEV 200x200 with the official hyper-parameters. Where the
# official recipe has a quirk (docs/checkpoint_compatibility.md) this one has the correct value.
_base_ = [
    "_base_/bevformer.py",
    "_base_/schedule_24e.py",
    "_base_/default_runtime.py",
]
point_cloud_range = {{_base_.point_cloud_range}}
class_names = {{_base_.class_names}}

# The workers hand on the bytes of the images; the model distorts, normalises and pads them on its
# device. The numbers are those of the published pipelines, which stay in configs/_base_/nuscenes.py.
model = dict(
    data_preprocessor=dict(
        type="ImagePreprocessor",
        mean=[103.530, 116.280, 123.675],
        std=[1.0, 1.0, 1.0],
        to_rgb=False,
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
