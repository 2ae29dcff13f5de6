# nuScenes with a queue of four frames at full resolution; Caffe's image statistics.
_base_ = ["./steps.py"]
class_names = {{_base_.class_names}}
dataset_type = "TemporalNuScenesDataset"
data_root = "data/nuscenes/"
queue_length = 4
input_modality = dict(
    use_lidar=False, use_camera=True, use_radar=False, use_map=False, use_external=True
)

train_pipeline = [
    {{_base_.steps.load}},
    {{_base_.steps.distort}},
    {{_base_.steps.annotations}},
    {{_base_.steps.in_range}},
    {{_base_.steps.in_classes}},
    {{_base_.steps.normalize_caffe}},
    {{_base_.steps.pad}},
    {{_base_.steps.format}},
    {{_base_.steps.collect}},
]
test_pipeline = [
    {{_base_.steps.load}},
    {{_base_.steps.normalize_caffe}},
    {{_base_.steps.pad}},
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(1600, 900),
        pts_scale_ratio=1,
        flip=False,
        transforms=[{{_base_.steps.format_test}}, {{_base_.steps.collect_test}}],
    ),
]

# For a model with a `data_preprocessor`: the workers pass uint8 images, and the model distorts,
# normalises, scales and pads them on its device.
byte_train_pipeline = [
    {{_base_.steps.load_bytes}},
    {{_base_.steps.draw_distortion}},
    {{_base_.steps.annotations}},
    {{_base_.steps.in_range}},
    {{_base_.steps.in_classes}},
    {{_base_.steps.format_bytes}},
    {{_base_.steps.collect}},
]
byte_test_pipeline = [
    {{_base_.steps.load_bytes}},
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(1600, 900),
        pts_scale_ratio=1,
        flip=False,
        transforms=[{{_base_.steps.format_bytes_test}}, {{_base_.steps.collect_test}}],
    ),
]

# How classes that are not nuScenes' are scored (docs/own_data.md); None for those of nuScenes.
benchmark = None
dataset = dict(
    type=dataset_type,
    data_root=data_root,
    classes=class_names,
    benchmark=benchmark,
    modality=input_modality,
    box_type_3d="LiDAR",
)
evaluated = dict(
    ann_file=data_root + "nuscenes_infos_temporal_val.pkl",
    pipeline=test_pipeline,
    test_mode=True,
    **dataset,
)
data = dict(
    samples_per_gpu=1,
    workers_per_gpu=4,
    train=dict(
        ann_file=data_root + "nuscenes_infos_temporal_train.pkl",
        pipeline=train_pipeline,
        test_mode=False,
        use_valid_flag=True,
        queue_length=queue_length,
        **dataset,
    ),
    val=evaluated,
    test=evaluated,
)
