"""nuScenes as queues of frames for training, and as single frames in time order for testing.

Shape legend: T frames, N cameras, H height, W width, G ground truths.
"""

from __future__ import annotations

import os.path as osp
from collections import Counter
from typing import Any, Sequence

import numpy as np
from mmcv.parallel import DataContainer
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.datasets.builder import DATASETS
from mmdet3d.utils import get_root_logger

from projects.bevformer.datasets.evaluators import EVALUATORS, EvaluatedDataset
from projects.bevformer.datasets.motion import QUIRKS, motion_keys, relative_metas
from projects.bevformer.datasets.paths import DataPaths, gaps
from projects.bevformer.datasets.pipelines import check_steps, with_own_steps
from projects.bevformer.datasets.pipelines.format import check_one_size, metas_of, stack_frames
from projects.bevformer.datasets.pipelines.view_augmentation import drawn_for_network
from projects.bevformer.nuscenes.benchmark import describe, name_objects, own_benchmark
from projects.bevformer.nuscenes.info_list import InfoList
from projects.bevformer.nuscenes.infos import load_infos
from projects.bevformer.nuscenes.records import (
    cam2img_of_camera,
    can_bus_of,
    lidar2cam_of_camera,
    lidar2img_of_camera,
    recorded_size,
)
from projects.bevformer.nuscenes.spec import SPLITS
from projects.bevformer.published import published

CAMERA_MODALITY = {
    "use_camera": True,
    "use_lidar": False,
    "use_radar": False,
    "use_map": False,
    "use_external": False,
}
_SHORT_QUEUE = 10  # frames; in shorter scenes the first one is repeated, which is harmless
_MAX_REDRAWS = 100  # a filter that removes every object would otherwise loop forever


@DATASETS.register_module(name=["TemporalNuScenesDataset", "CustomNuScenesDataset"])
@published(ignores=("bev_size",), only={"overlap_test": False})
class TemporalNuScenesDataset(EvaluatedDataset, NuScenesDataset):
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
        classes: class names in the order of the logits; nuScenes' where None. Others than nuScenes' have a
            mAP of their own and no NDS.
        queue_length: T; T - 1 history frames and the current one. 1 is a model without history.
        load_interval: take every n-th frame.
        with_velocity: boxes have 9 columns instead of 7.
        modality: written into result files; camera where None.
        box_type_3d: "LiDAR": the network's boxes are in the lidar frame.
        filter_empty_gt: in training, draw another frame for a current frame without objects.
            History frames need none.
        test_mode: items are test items.
        eval_version: devkit's evaluation config.
        use_valid_flag: keep objects with lidar or radar points, else those with lidar points.
        can_bus_quaternion: "wxyz" writes the ego orientation into `can_bus`; "official" writes w four
            times, as the official weights were trained.
        can_bus_message: "same" takes acceleration, rotation rate and velocity from the CAN message of
            the position; "official" from the message after, as the official weights were trained.
        can_bus_heading: "wrapped" gives turns within -180 to 180 degrees; "official" the difference of
            headings from 0 to 360, -359.8 instead of 0.2, as the official weights were trained.
        lidar_axes: "lidar2ego" of the info file says where the lidar looks and is; "official" takes
            a quarter turn above the ego origin for any vehicle, as the official weights were trained.
        result_velocity: "horizontal" submits velocities without a vertical part in the global frame;
            "official" without one in the lidar's, which is tilted, as the original does.
        evaluators: head of the network -> config of what scores it, see `datasets.evaluators`; by
            default NuScenesEvaluator scores "pts_bbox".
        benchmark: dict(classes={name: settings}, distances=[...], error_distance=...) of own classes; see
            docs/own_data.md.

    Attributes:
        cameras: tuple of the names of the N cameras, in the order of every (N, ...) array.
        metadata: of the info file.

    Raises:
        FileNotFoundError, ValueError: see `load_infos`; no frames; unknown option.

    Source: BEVFormer (arXiv 2203.17270), section 3.5 (training queue).
    """

    # Whether the model reads it, for the warning about info files of the original.
    reads_can_bus = True
    # Whether GlobalRotScaleTransImage moves all frames of an item and their motion.
    moves_scene = False

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
        can_bus_heading: str = "wrapped",
        lidar_axes: str = "lidar2ego",
        result_velocity: str = "horizontal",
        evaluators: dict[str, dict] | None = None,
        benchmark: dict[str, Any] | None = None,
    ) -> None:
        if queue_length < 1:
            raise ValueError(f"queue_length must be 1 or more, got {queue_length}")
        if box_type_3d.lower() != "lidar":
            raise ValueError(f"box_type_3d must be 'LiDAR', got {box_type_3d!r}")
        self.can_bus_quaternion, self.can_bus_message = can_bus_quaternion, can_bus_message
        self.can_bus_heading, self.lidar_axes = can_bus_heading, lidar_axes
        self.result_velocity = result_velocity
        for name, allowed in QUIRKS.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        check_steps(pipeline or (), type(self).__name__, self.moves_scene)
        if not osp.isfile(ann_file):
            load_infos(ann_file)  # its message says what is missing; the parent's does not
        self.own_benchmark = own_benchmark(self.get_classes(classes), benchmark)
        self.queue_length = queue_length
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
        if self.own_benchmark is not None:
            self.eval_detection_configs = self.own_benchmark
            if test_mode:
                get_root_logger().info(describe(self.own_benchmark))
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
        of_file = self.own_benchmark is not None or self.metadata["version"] not in SPLITS
        scored = self.test_mode and of_file
        for line in name_objects(infos, self.CLASSES, self.own_benchmark, scored):
            get_root_logger().warning(f"{self.ann_file} has no {line}")
        self.version = self.metadata["version"]
        self.cameras = tuple(self.metadata["cameras"])
        self._tokens_of_file = np.array([info["token"] for info in infos])
        if (
            self.reads_can_bus
            and self.version in SPLITS
            and self.can_bus_message == "same"
            and "can_bus_motion_after" not in infos[0]
        ):
            get_root_logger().warning(
                f"{self.ann_file} was not written by this project: its can_bus takes acceleration, "
                "rotation rate and velocity from the CAN message after the key frame, although "
                'can_bus_message="same"; tools/create_data.py writes both'
            )
        self._paths = DataPaths(self.data_root, infos[0], self.ann_file)
        for line in gaps(self.metadata, infos[0], self._paths):
            get_root_logger().warning(line)
        infos = infos[:: self.load_interval]
        longest = max(Counter(info["scene_token"] for info in infos).values())
        if not self.test_mode and self.queue_length > max(longest, _SHORT_QUEUE):
            raise ValueError(
                f"queue_length is {self.queue_length}, but the longest scene of {self.ann_file} has "
                f"{longest} frames: no sample has as many frames before it, lower queue_length"
            )
        return InfoList(infos)

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
        augmentation: dict[str, Any] = {}  # one draw for all frames of the queue
        current = self._frame(index, augmentation)
        if self.filter_empty_gt and not (current["gt_labels_3d"].data != -1).any():
            return None
        history = [self._frame(i, augmentation) for i in self._history_indices(index)]
        queue = [*history, current]
        check_one_size(queue)

        example = dict(current)
        example["img"] = stack_frames([frame["img"] for frame in queue])
        drawn = drawn_for_network(augmentation)
        metas = relative_metas([{**frame["img_metas"].data, **drawn} for frame in queue])
        example["img_metas"] = DataContainer(dict(enumerate(metas)), cpu_only=True)
        return example

    def prepare_test_data(self, index: int) -> dict:
        """One frame; `can_bus` is absolute, the model computes the differences."""
        return self._frame(index, {})

    def _frame(self, index, augmentation):
        return self._run_pipeline(index, dict(self.get_data_info(index), aug_param=augmentation))

    def _run_pipeline(self, index, frame):
        self.pre_pipeline(frame)
        keys = motion_keys(self.data_infos[index], self.can_bus_heading, self.lidar_axes)
        try:
            frame = self.pipeline(frame)
            for meta in () if frame is None else metas_of(frame):
                meta.update(keys)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the pipeline of {self.ann_file} fails at sample {self.data_infos[index]['token']} "
                f"({type(error).__name__}: {error}): check the steps and their order"
            ) from error
        return frame

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
            lidar2img, lidar2cam, cam2img (N (4, 4) float64), image_size (N); in training also ann_info.
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
        frame["image_size"] = [recorded_size(camera) for camera in cameras]
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
