# First stage of the demo weights: frames without history, on scenes and seeds that are not in the
# demo. configs/demo_weights_temporal.py continues from here.
_base_ = ["./demo.py"]

queue_length = 1
train_root = "data/synthetic_train/"
data = dict(
    train=dict(data_root=train_root, ann_file=train_root + "synthetic_infos_temporal_train.pkl")
)
lr = 4e-4
lr_config = dict(warmup_iters=300, min_lr_ratio=5e-2)
total_epochs = 5
log_config = dict(interval=50)
evaluation = dict(interval=5)
load_from = None
