# What the pipelines are made of. A recipe or --cfg-options gives a variable another value, and
# whatever is made of it follows (docs/configs.md). A pipeline is a list of steps:
#   train_pipeline = [{{_base_.steps.load}}, {{_base_.steps.annotations}}, ...]
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
class_names = [
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
]
image_size = (1600, 900)  # width and height of the stored images, of which v2 cuts out a part
image_scale = 1.0
image_divisor = 32  # scaled images are padded to multiples of it

# Image statistics: of Caffe's ResNets (BGR, not divided), and of torchvision's (RGB).
caffe_statistics = dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
torchvision_statistics = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
img_norm_cfg = caffe_statistics

steps = dict(
    load=dict(type="LoadMultiViewImageFromFiles", to_float32=True),
    load_bytes=dict(type="LoadMultiViewImageFromFiles"),
    annotations=dict(
        type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True, with_attr_label=False
    ),
    in_range=dict(type="ObjectRangeFilter", point_cloud_range=point_cloud_range),
    in_classes=dict(type="ObjectNameFilter", classes=class_names),
    distort=dict(type="PhotoMetricDistortionMultiViewImage"),
    draw_distortion=dict(type="DrawColorDistortion"),
    normalize=dict(type="NormalizeMultiviewImage", **img_norm_cfg),
    resize=dict(type="RandomScaleImageMultiViewImage", scales=[image_scale]),
    pad=dict(type="PadMultiViewImage", size_divisor=image_divisor),
    format=dict(type="DefaultFormatBundle3D", class_names=class_names),
    format_test=dict(type="DefaultFormatBundle3D", class_names=class_names, with_label=False),
    format_bytes=dict(type="ByteImageFormatBundle3D", class_names=class_names, stack=False),
    format_bytes_test=dict(
        type="ByteImageFormatBundle3D", class_names=class_names, with_label=False
    ),
    collect=dict(type="CustomCollect3D", keys=["gt_bboxes_3d", "gt_labels_3d", "img"]),
    collect_test=dict(type="CustomCollect3D", keys=["img"]),
)
