"""nuScenes as queues of frames for training, and as single frames in time order for testing.

Shape legend: T frames, N cameras, H height, W width, G ground truths.
"""

from __future__ import annotations

import os.path as osp
import tempfile
from typing import Any, Sequence

import numpy as np
from mmcv.parallel import DataContainer
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.datasets.builder import DATASETS
from mmdet3d.utils import get_root_logger

from projects.bevformer.datasets.evaluators import BOXES, EVALUATORS, DatasetEvaluator
from projects.bevformer.datasets.paths import DataPaths
from projects.bevformer.datasets.pipelines import with_own_steps
from projects.bevformer.datasets.pipelines.format import image_hw, stack_frames
from projects.bevformer.geometry.ego_motion import relative_can_bus
from projects.bevformer.nuscenes.evaluation.evaluator import NuScenesEvaluator
from projects.bevformer.nuscenes.evaluation.scoring import flat_metrics
from projects.bevformer.nuscenes.info_list import InfoList
from projects.bevformer.nuscenes.infos import load_infos
from projects.bevformer.nuscenes.records import (
    cam2img_of_camera,
    can_bus_of,
    lidar2cam_of_camera,
    lidar2img_of_camera,
)
from projects.bevformer.published import published

CAMERA_MODALITY = {
    "use_camera": True,
    "use_lidar": False,
    "use_radar": False,
    "use_map": False,
    "use_external": False,
}
# Bounds the redraws: a filter that removes every object would otherwise loop forever.
_MAX_REDRAWS = 100


@DATASETS.register_module(name=["TemporalNuScenesDataset", "CustomNuScenesDataset"])
@published(ignores=("bev_size",), only={"overlap_test": False})
class TemporalNuScenesDataset(NuScenesDataset):
    """nuScenes for a temporal camera model.

    A training item is a queue of T frames with the annotations of the last one; a test item is one
    frame, and items follow each other scene after scene in time order. Info records are never edited:
    `data_infos[i]` is a copy, see `InfoList`.

    Args:
        ann_file: info file, see `load_infos`.
        pipeline: list of step configs; some of mmdet3d's are replaced by this package's, see
            `with_own_steps`.
        data_root: folder that the paths in the info file are relative to. If they name a place on another
            machine, the part after it ("samples/...") is looked up in data_root.
        classes: class names in the order of the logits; nuScenes' where None.
        queue_length: T; T - 1 history frames and the current one. 1 is a model without history.
        load_interval: take every n-th frame.
        with_velocity: boxes have 9 columns instead of 7.
        modality: written into result files; camera where None.
        box_type_3d: as in mmdet3d.
        filter_empty_gt: in training, draw another frame for a current frame without objects.
            History frames need none.
        test_mode: items are test items.
        eval_version: devkit's evaluation config.
        use_valid_flag: keep objects with lidar or radar points, else those with lidar points.
        can_bus_quaternion: "wxyz" writes the ego orientation into `can_bus`; "official" writes w four
            times, as the official weights were trained.
        can_bus_message: "same" takes acceleration, rotation rate and velocity from the CAN message of
            the position; "official" from the message after, as the official weights were trained.
        evaluators: head of the network -> config of what scores it, see `datasets.evaluators`; by
            default NuScenesEvaluator scores "pts_bbox".

    Attributes:
        cameras: tuple of the names of the N cameras, in the order of every (N, ...) array.
        metadata: of the info file.

    Raises:
        FileNotFoundError, ValueError: see `load_infos`; no frames; unknown option.

    Source: BEVFormer (arXiv 2203.17270), section 3.5 (training queue).
    """

    reads_can_bus = True  # whether the model does, for the warning about info files of the original

    def __init__(
        self,
        ann_file: str,
        pipeline: Sequence[Any] | None = None,
        data_root: str | None = None,
        classes: Sequence[str] | None = None,
        queue_length: int = 4,
        load_interval: int = 1,
        with_velocity: bool = True,
        modality: dict[str, bool] | None = None,
        box_type_3d: str = "LiDAR",
        filter_empty_gt: bool = True,
        test_mode: bool = False,
        eval_version: str = "detection_cvpr_2019",
        use_valid_flag: bool = False,
        can_bus_quaternion: str = "wxyz",
        can_bus_message: str = "same",
        evaluators: dict[str, dict] | None = None,
    ) -> None:
        if queue_length < 1:
            raise ValueError(f"queue_length must be 1 or more, got {queue_length}")
        _check_option("can_bus_quaternion", can_bus_quaternion, ("wxyz", "official"))
        _check_option("can_bus_message", can_bus_message, ("same", "official"))
        if not osp.isfile(ann_file):
            load_infos(ann_file)  # its message says what is missing; the parent's does not
        self.queue_length = queue_length
        self.can_bus_quaternion = can_bus_quaternion
        self.can_bus_message = can_bus_message
        super().__init__(
            ann_file=ann_file,
            pipeline=None if pipeline is None else with_own_steps(pipeline, get_root_logger()),
            data_root=data_root,
            classes=classes,
            load_interval=load_interval,
            with_velocity=with_velocity,
            modality=CAMERA_MODALITY if modality is None else modality,
            box_type_3d=box_type_3d,
            filter_empty_gt=filter_empty_gt,
            test_mode=test_mode,
            eval_version=eval_version,
            use_valid_flag=use_valid_flag,
        )
        # The devkit keeps a dict view here, which spawned workers cannot pickle.
        self.eval_detection_configs.class_names = list(self.eval_detection_configs.class_names)
        self._evaluator = None
        self._evaluators = {
            head: EVALUATORS.build(dict(config), default_args={"dataset": self})
            for head, config in (evaluators or {}).items()
        }

    def load_annotations(self, ann_file: Any) -> InfoList:
        """Read `self.ann_file`; called by the parent, with the opened file.

        Returns:
            InfoList, scene after scene in time order, every `load_interval`-th.
        """
        infos, self.metadata = load_infos(self.ann_file)
        if not infos:
            raise ValueError(
                f"{self.ann_file} holds no frames: no scene of that split was in the tables "
                "when tools/create_data.py wrote it"
            )
        self.version = self.metadata["version"]
        self.cameras = tuple(self.metadata["cameras"])
        self._tokens_of_file = np.array([info["token"] for info in infos])
        if (
            self.reads_can_bus
            and self.can_bus_message == "same"
            and "can_bus_motion_after" not in infos[0]
        ):
            get_root_logger().warning(
                f"{self.ann_file} was not written by this project: its can_bus takes acceleration, "
                "rotation rate and velocity from the CAN message after the key frame, although "
                'can_bus_message="same"; tools/create_data.py writes both'
            )
        picture = infos[0]["cams"][self.cameras[0]]["data_path"]
        self._paths = DataPaths(self.data_root, picture, self.ann_file)
        return InfoList(infos[:: self.load_interval])

    def __getitem__(self, index: int) -> dict:
        """A training queue or a test frame.

        Raises:
            ValueError: no drawn frame has an object.
        """
        if self.test_mode:
            return self.prepare_test_data(index)
        for _ in range(_MAX_REDRAWS):
            example = self.prepare_train_data(index)
            if example is not None:
                return example
            index = self._rand_another(index)
        raise ValueError(
            f"{_MAX_REDRAWS} frames of {self.ann_file} in a row have no object left: check classes, "
            "point_cloud_range, use_valid_flag, or set filter_empty_gt=False"
        )

    def prepare_train_data(self, index: int) -> dict | None:
        """A queue of T frames that ends with frame `index`.

        Returns:
            None if the current frame has no object and `filter_empty_gt` is set, else a dict:
            img: DataContainer of (T, N, 3, H, W) float32, or (T, N, H, W, 3) uint8.
            img_metas: DataContainer of {0: meta, ..., T - 1: meta}; `can_bus` holds differences to the
                previous frame of the queue, `prev_bev_exists` whether that is of the same scene.
            gt_bboxes_3d, gt_labels_3d: DataContainers; objects of the last frame.
        """
        current = self._run_pipeline(index)
        if self.filter_empty_gt and not (current["gt_labels_3d"].data != -1).any():
            return None
        history = self._history_indices(index)
        queue = [self._run_pipeline(i) for i in history]
        for i, frame in zip(history, queue):
            self._check_one_size(i, frame, index, current)
        queue.append(current)

        example = dict(current)
        example["img"] = stack_frames([frame["img"] for frame in queue])
        metas = relative_metas([frame["img_metas"].data for frame in queue])
        example["img_metas"] = DataContainer(dict(enumerate(metas)), cpu_only=True)
        return example

    def _check_one_size(self, i, frame, index, current):
        """Frames are stacked, and torch would not name the one that differs."""
        sizes = [image_hw(f["img"].data) for f in (frame, current)]
        if sizes[0] != sizes[1]:
            first, second = (
                self._paths.join(self.data_infos[k]["cams"][self.cameras[0]]["data_path"])
                for k in (i, index)
            )
            raise ValueError(
                f"the images of sample {self.data_infos[i]['token']} ({first}) are {sizes[0]} after the "
                f"pipeline, those of sample {self.data_infos[index]['token']} ({second}) are {sizes[1]}: "
                "all must have one size; use the original images"
            )

    def prepare_test_data(self, index: int) -> dict:
        """One frame; `can_bus` is absolute, the model computes the differences."""
        return self._run_pipeline(index)

    def _run_pipeline(self, index):
        frame = self.get_data_info(index)
        self.pre_pipeline(frame)
        return self.pipeline(frame)

    def _history_indices(self, index):
        """T - 1 of the T frames before `index`, in time order; frame 0 replaces those before it."""
        before = np.arange(index - self.queue_length, index)
        chosen = np.random.choice(before, self.queue_length - 1, replace=False)
        return np.sort(chosen).clip(min=0).tolist()

    def get_data_info(self, index: int) -> dict:
        """Input of the pipeline; all objects are new.

        Returns:
            dict of sample_idx, prev_idx, next_idx (sample tokens), scene_token, frame_idx,
            timestamp (s), pts_filename, cameras, can_bus (18,), img_filename (N paths),
            lidar2img, lidar2cam, cam2img (N (4, 4) float64 each); in training also ann_info.
        """
        info = self.data_infos[index]
        frame = {
            "sample_idx": info["token"],
            "prev_idx": info["prev"],
            "next_idx": info["next"],
            "scene_token": info["scene_token"],
            "frame_idx": info.get("frame_idx"),
            "timestamp": info["timestamp"] / 1e6,
            "pts_filename": self._paths.join(info["lidar_path"]),
            "cameras": self.cameras,
            "can_bus": can_bus_of(info, self.can_bus_quaternion, self.can_bus_message),
        }
        cameras = [info["cams"][name] for name in self.cameras]
        frame["img_filename"] = [self._paths.join(camera["data_path"]) for camera in cameras]
        frame["lidar2cam"] = [lidar2cam_of_camera(camera) for camera in cameras]
        frame["cam2img"] = [cam2img_of_camera(camera) for camera in cameras]
        frame["lidar2img"] = [lidar2img_of_camera(camera) for camera in cameras]
        if not self.test_mode:
            frame["ann_info"] = self.get_ann_info(index)
        return frame

    def get_ann_info(self, index: int) -> dict:
        """Annotated objects of a frame.

        Returns:
            dict of gt_bboxes_3d: G LiDARInstance3DBoxes, 9 columns with velocity (unknown ones are 0);
            gt_labels_3d: (G,) int64, -1 for what is not a class; gt_names: (G,) str.

        Raises:
            ValueError: the info file has no annotations (test split).
        """
        info = self.data_infos[index]
        if "gt_boxes" not in info:
            raise ValueError(f"{self.ann_file} has no annotations: it is of the test split")
        keep = info["valid_flag"] if self.use_valid_flag else info["num_lidar_pts"] > 0
        boxes = info["gt_boxes"][keep]
        names = info["gt_names"][keep]
        if self.with_velocity:
            boxes = np.concatenate((boxes, np.nan_to_num(info["gt_velocity"][keep])), axis=1)
        labels = np.array([self.cat2id.get(name, -1) for name in names], dtype=np.int64)
        boxes = LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1], origin=(0.5, 0.5, 0.5))
        return {
            "gt_bboxes_3d": boxes.convert_to(self.box_mode_3d),
            "gt_labels_3d": labels,
            "gt_names": names,
        }

    def ground_truth(self, index: int) -> dict[str, Any] | None:
        """`boxes_3d` and `labels_3d` of a frame's objects, as in results; None in the test split."""
        if "gt_boxes" not in self.data_infos[index]:
            return None
        found = self.get_ann_info(index)
        return {"boxes_3d": found["gt_bboxes_3d"], "labels_3d": found["gt_labels_3d"]}

    def info_with_paths(self, index: int) -> dict:
        """A copy of a record with paths of the files, also where another machine wrote the info file."""
        return self._paths.resolve(self.data_infos[index])

    @property
    def evaluator(self) -> DatasetEvaluator:
        """Scores and writes results; built when first used, and again for other `data_infos`."""
        if self._evaluator is None or self._evaluator[0] is not self.data_infos:
            heads = dict(self._evaluators)
            if BOXES not in heads:
                boxes = NuScenesEvaluator(
                    self.data_infos,
                    self.metadata,
                    self.CLASSES,
                    self.eval_detection_configs,
                    self.ann_file,
                    self.data_root,
                    self.modality,
                    self._tokens_of_file,
                )
                heads = {BOXES: boxes, **heads}
            evaluator = DatasetEvaluator(heads, len(self), get_root_logger())
            self._evaluator = (self.data_infos, evaluator)
        return self._evaluator[1]

    def format_results(
        self, results: Sequence[dict], jsonfile_prefix: str | None = None
    ) -> tuple[dict[str, Any], tempfile.TemporaryDirectory | None]:
        """Write detections as a nuScenes submission, in mmdet3d's layout.

        Args:
            results: one {"pts_bbox": {"boxes_3d", "scores_3d", "labels_3d"}} per frame, in dataset order.
            jsonfile_prefix: folder to write below; a temporary one where None.

        Returns:
            result_files: {"pts_bbox": path of `{jsonfile_prefix}/pts_bbox/results_nusc.json`}.
            tmp_dir: the TemporaryDirectory, or None; it has to outlive the use of the files.

        Raises:
            ValueError: not one result per frame, or a box that the benchmark does not accept.
        """
        tmp_dir = tempfile.TemporaryDirectory() if jsonfile_prefix is None else None
        folder = osp.join(tmp_dir.name if tmp_dir else jsonfile_prefix, BOXES)
        return self.evaluator.write(results, folder), tmp_dir

    def evaluate(
        self,
        results: Sequence[dict],
        metric: Any = "bbox",
        logger: Any = None,
        jsonfile_prefix: str | None = None,
        result_names: Sequence[str] = (BOXES,),
        pipeline: Any = None,
        devkit: bool = False,
    ) -> dict[str, float]:
        """Score predictions, with mmdet3d's arguments and layout; see `DatasetEvaluator.score`.

        Args:
            results, metric, logger, devkit: as there.
            jsonfile_prefix: results and metrics go to `{jsonfile_prefix}/pts_bbox`; None keeps nothing.
            result_names: only ("pts_bbox",); other heads are chosen by `metric`.
            pipeline: unused; mmdet3d's evaluation hook passes it.

        Returns:
            dict of float, see `flat_metrics`.
        """
        if list(result_names) != [BOXES]:
            raise ValueError(f"result_names is {result_names!r}: choose other heads by `metric`")
        folder = None if jsonfile_prefix is None else osp.join(jsonfile_prefix, BOXES)
        return flat_metrics(self.evaluator.score(results, folder, metric, logger, devkit))


def relative_metas(metas: Sequence[dict]) -> list[dict]:
    """Metas of a queue as training expects them; the given metas are not modified.

    Args:
        metas: T metas in time order, `can_bus` absolute.

    Returns:
        T new metas with `prev_bev_exists`. Position and yaw in degrees in `can_bus` are differences to the
        previous frame of the queue; 0 for the first frame and after a change of scene.
    """
    queue = []
    previous = None
    for meta in metas:
        same_scene = previous is not None and previous["scene_token"] == meta["scene_token"]
        can_bus = relative_can_bus(meta["can_bus"], previous["can_bus"] if same_scene else None)
        queue.append({**meta, "can_bus": can_bus, "prev_bev_exists": same_scene})
        previous = meta
    return queue


def _check_option(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
