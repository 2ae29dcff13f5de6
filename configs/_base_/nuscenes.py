# nuScenes with a queue of four frames at full resolution.
_base_ = ["./steps.py"]
dataset_type = "TemporalNuScenesDataset"
data_root = "data/nuscenes/"
info_prefix = "nuscenes"
queue_length = 4
samples_per_gpu = 1
workers_per_gpu = 4
input_modality = dict(
    use_lidar=False, use_camera=True, use_radar=False, use_map=False, use_external=True
)
# True: the workers pass uint8 images, and the model distorts, normalises, scales and pads them on its
# device (`model.data_preprocessor`).
images_on_device = False

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
        img_scale={{_base_.image_size}},
        pts_scale_ratio=1,
        flip=False,
        transforms=[{{_base_.steps.format_bytes_test}}, {{_base_.steps.collect_test}}],
    ),
]
# The published pipelines: those of scaled images scale and pad within MultiScaleFlipAug3D.
resize = [] if {{_base_.image_scale}} == 1 else [{{_base_.steps.resize}}]
resize_and_pad = [*resize, {{_base_.steps.pad}}]
float_train_pipeline = [
    {{_base_.steps.load}},
    {{_base_.steps.distort}},
    {{_base_.steps.annotations}},
    {{_base_.steps.in_range}},
    {{_base_.steps.in_classes}},
    {{_base_.steps.normalize}},
    *resize_and_pad,
    {{_base_.steps.format}},
    {{_base_.steps.collect}},
]
float_test_pipeline = [
    {{_base_.steps.load}},
    {{_base_.steps.normalize}},
    *([] if resize else resize_and_pad),
    dict(
        type="MultiScaleFlipAug3D",
        img_scale={{_base_.image_size}},
        pts_scale_ratio=1,
        flip=False,
        transforms=[
            *(resize_and_pad if resize else []),
            {{_base_.steps.format_test}},
            {{_base_.steps.collect_test}},
        ],
    ),
]
train_pipeline = byte_train_pipeline if images_on_device else float_train_pipeline
test_pipeline = byte_test_pipeline if images_on_device else float_test_pipeline

# How classes that are not nuScenes' are scored (docs/own_data.md); None for those of nuScenes.
benchmark = None
info_files = f"{str(data_root).rstrip('/')}/{info_prefix}_infos_temporal_"
dataset = dict(
    type=dataset_type,
    data_root=data_root,
    classes={{_base_.class_names}},
    benchmark=benchmark,
    modality=input_modality,
    box_type_3d="LiDAR",
)
evaluated = dict(
    ann_file=info_files + "val.pkl",
    pipeline=test_pipeline,
    test_mode=True,
    **dataset,
)
data = dict(
    samples_per_gpu=samples_per_gpu,
    workers_per_gpu=workers_per_gpu,
    train=dict(
        ann_file=info_files + "train.pkl",
        pipeline=train_pipeline,
        test_mode=False,
        use_valid_flag=True,
        queue_length=queue_length,
        **dataset,
    ),
    val=evaluated,
    test=evaluated,
)
