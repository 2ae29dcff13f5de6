# Second stage of the demo weights: queues of three frames, from the last checkpoint of
# demo_weights.py. The same recipe without history, for comparison:
#   --cfg-options queue_length=1 model.video_test_mode=False
_base_ = ["./demo_weights.py"]

queue_length = 3
lr = 2e-4
total_epochs = 2
load_from = "work_dirs/demo_weights/latest.pth"
