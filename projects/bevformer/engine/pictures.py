"""Pictures of predictions beside the ground truth, for `tools/eval.py --show-dir`."""

import numpy as np

from projects.bevformer.engine.log import progress_bar


def draw_predictions(dataset, results, out_dir, count=None, score_threshold=0.3):
    """Draw samples of a predicted data set.

    Args:
        dataset: TemporalNuScenesDataset.
        results: one result dict a sample, in its order.
        out_dir: folder of the pictures.
        count: so many evenly spaced samples; None for all.
        score_threshold: predictions below are left out.
    """
    from projects.bevformer.visualization import draw_sample  # matplotlib is slow to import

    indices = np.arange(len(results))
    if count is not None and count < len(results):
        indices = np.linspace(0, len(results) - 1, count).round().astype(int)
    for index in progress_bar(indices, "drawing", "sample"):
        info = dataset.info_with_paths(index)
        draw_sample(
            out_dir,
            info,
            results[index]["pts_bbox"],
            _ground_truth(dataset, index) if "gt_boxes" in info else None,
            dataset.data_root,
            score_threshold,
            dataset.CLASSES,
        )


def _ground_truth(dataset, index):
    annotations = dataset.get_ann_info(index)
    return {
        "boxes_3d": annotations["gt_bboxes_3d"],
        "labels_3d": annotations["gt_labels_3d"],
    }
