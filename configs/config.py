# The default recipe: BEVFormer-base at BEV 200x200 with the official hyper-parameters. Where the
# official recipe has a quirk (docs/checkpoint_compatibility.md) this one has the correct value.
_base_ = [
    "_base_/bevformer.py",
    "_base_/schedule_24e.py",
    "_base_/default_runtime.py",
]

# The workers pass uint8 images; the model distorts, normalises and pads them on its device. The
# numbers are those of the published pipelines, which stay in configs/_base_/nuscenes.py.
model = dict(
    data_preprocessor=dict(
        type="ImagePreprocessor",
        mean={{_base_.caffe_statistics.mean}},
        std={{_base_.caffe_statistics.std}},
        to_rgb={{_base_.caffe_statistics.to_rgb}},
        size_divisor=32,
    ),
)
data = dict(
    train=dict(pipeline={{_base_.byte_train_pipeline}}),
    val=dict(pipeline={{_base_.byte_test_pipeline}}),
    test=dict(pipeline={{_base_.byte_test_pipeline}}),
)
