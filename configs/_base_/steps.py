# The steps that pipelines are made of, each written once. A pipeline is a list of them:
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

# Image statistics: of Caffe's ResNets (BGR, not divided), and of torchvision's (RGB).
caffe_statistics = dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
torchvision_statistics = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)

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
    normalize_caffe=dict(type="NormalizeMultiviewImage", **caffe_statistics),
    normalize_torchvision=dict(type="NormalizeMultiviewImage", **torchvision_statistics),
    half_size=dict(type="RandomScaleImageMultiViewImage", scales=[0.5]),
    four_fifths_size=dict(type="RandomScaleImageMultiViewImage", scales=[0.8]),
    pad=dict(type="PadMultiViewImage", size_divisor=32),
    format=dict(type="DefaultFormatBundle3D", class_names=class_names),
    format_test=dict(type="DefaultFormatBundle3D", class_names=class_names, with_label=False),
    format_bytes=dict(type="ByteImageFormatBundle3D", class_names=class_names, stack=False),
    format_bytes_test=dict(
        type="ByteImageFormatBundle3D", class_names=class_names, with_label=False
    ),
    collect=dict(type="CustomCollect3D", keys=["gt_bboxes_3d", "gt_labels_3d", "img"]),
    collect_test=dict(type="CustomCollect3D", keys=["img"]),
)
