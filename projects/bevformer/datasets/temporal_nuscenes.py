"""nuScenes as queues of frames for training, and frame by frame in time order for testing.

Shape legend: T frames, N cameras, H height, W width, G ground truths.
"""

import os.path as osp
import tempfile

import numpy as np
import torch
from einops import rearrange
from mmcv.parallel import DataContainer
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.datasets.builder import DATASETS
from mmdet3d.utils import get_root_logger
from scipy.spatial.transform import Rotation

from projects.bevformer.datasets.pipelines.format import stack_byte_images
from projects.bevformer.geometry.can_bus import (
    CAN_MOTION,
    CAN_ORIENTATION,
    CAN_POSITION,
    CAN_YAW_DEG,
    CAN_YAW_RAD,
)
from projects.bevformer.io import join_root
from projects.bevformer.nuscenes.evaluation.results import (
    detected_boxes,
    read_result_file,
    write_result_file,
)
from projects.bevformer.nuscenes.evaluation.scoring import (
    EvaluatedSplit,
    metric_dict,
    score,
    score_with_devkit,
)
from projects.bevformer.nuscenes.info_list import InfoList
from projects.bevformer.nuscenes.infos import load_infos, path_below_root
from projects.bevformer.nuscenes.spec import CAMERAS

CAMERA_MODALITY = {
    "use_camera": True,
    "use_lidar": False,
    "use_radar": False,
    "use_map": False,
    "use_external": False,
}
# A class list or a range that leaves nothing would otherwise draw for ever.
_MAX_REDRAWS = 100


@DATASETS.register_module(name=["TemporalNuScenesDataset", "CustomNuScenesDataset"])
class TemporalNuScenesDataset(NuScenesDataset):
    """nuScenes for a temporal camera model.

    A training item is a queue of T frames with the annotations of the last one; a test item is one
    frame, and items follow each other scene after scene in time order. Info records are never edited:
    `data_infos[i]` is a copy, see `InfoList`.

    Args:
        ann_file: info file, see `load_infos`.
        pipeline: list of step configs.
        data_root: folder that the paths in the info file are relative to. Where they name a place on
            another machine, what follows it ("samples/...") is looked for in data_root.
        classes: class names in the order of the logits; nuScenes' where None.
        queue_length: T; T - 1 history frames and the current one. 1 is a model without time.
        bev_size: read by no one; published configs pass it.
        load_interval: take every so many-th frame.
        with_velocity: boxes have 9 columns instead of 7.
        modality: written into result files; camera where None.
        box_type_3d: as in mmdet3d.
        filter_empty_gt: in training, draw another frame for a current frame without objects.
            History frames need none.
        test_mode: items are test items.
        eval_version: devkit's evaluation config.
        use_valid_flag: keep objects with lidar or radar points, else those with lidar points.
        can_bus_quaternion: "wxyz" writes the ego orientation into `can_bus`; "official" writes w four
            times, which the official weights were trained on.
        can_bus_message: "same" takes acceleration, rotation rate and velocity from the CAN message of
            the position; "official" from the message after, which the official weights were trained on.

    Raises:
        FileNotFoundError, ValueError: see `load_infos`; no frames; unknown option.

    Source: BEVFormer (arXiv 2203.17270), section 3.5 (training queue).
    """

    def __init__(
        self,
        ann_file,
        pipeline=None,
        data_root=None,
        classes=None,
        queue_length=4,
        bev_size=None,
        load_interval=1,
        with_velocity=True,
        modality=None,
        box_type_3d="LiDAR",
        filter_empty_gt=True,
        test_mode=False,
        eval_version="detection_cvpr_2019",
        use_valid_flag=False,
        can_bus_quaternion="wxyz",
        can_bus_message="same",
    ):
        if queue_length < 1:
            raise ValueError(f"queue_length must be 1 or more, got {queue_length}")
        _check_option("can_bus_quaternion", can_bus_quaternion, ("wxyz", "official"))
        _check_option("can_bus_message", can_bus_message, ("same", "official"))
        if not osp.isfile(ann_file):
            load_infos(ann_file)  # says what is missing; the parent's message does not
        self._moved = False
        self.queue_length = queue_length
        self.can_bus_quaternion = can_bus_quaternion
        self.can_bus_message = can_bus_message
        super().__init__(
            ann_file=ann_file,
            pipeline=pipeline,
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

    def load_annotations(self, ann_file):
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
        self._tokens_of_file = [info["token"] for info in infos]
        self._check_can_bus_message(infos)
        self._moved = self._was_moved(infos[0]["cams"][CAMERAS[0]]["data_path"])
        return InfoList(infos[:: self.load_interval])

    def _was_moved(self, path):
        """Whether files lie under data_root and not where the info file says, judged by one picture."""
        if osp.exists(self._join_root(path)) or path_below_root(path) is None:
            return False
        moved = osp.join(self.data_root or "", path_below_root(path))
        if not osp.exists(moved):
            return False  # nothing is there; loading it says so
        get_root_logger().info(
            f"{self.ann_file} names {path}, which is not there; its files are read from {moved} and so on"
        )
        return True

    def _check_can_bus_message(self, infos):
        """The original's info files mix two CAN messages, and cannot be unmixed."""
        if self.can_bus_message == "same" and "can_bus_motion_after" not in infos[0]:
            get_root_logger().warning(
                f"{self.ann_file} was not written by this project: its can_bus takes acceleration, "
                "rotation rate and velocity from the CAN message after the key frame, although "
                'can_bus_message="same"; tools/create_data.py writes both'
            )

    def __getitem__(self, index):
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

    def prepare_train_data(self, index):
        """A queue of T frames that ends with frame `index`.

        Returns:
            None where the current frame has no object and `filter_empty_gt` is set, else a dict:
            img: DataContainer of (T, N, 3, H, W) float32, or (T, N, H, W, 3) uint8.
            img_metas: DataContainer of {0: meta, ..., T - 1: meta}; `can_bus` holds the deltas to the
                frame before in the queue, `prev_bev_exists` says whether that is of the same scene.
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
        example["img"] = _stack_queue([frame["img"] for frame in queue])
        metas = relative_metas([frame["img_metas"].data for frame in queue])
        example["img_metas"] = DataContainer(dict(enumerate(metas)), cpu_only=True)
        return example

    def _check_one_size(self, i, frame, index, current):
        """Frames are stacked; torch would not say which one differs."""
        sizes = [_image_hw(f["img"].data) for f in (frame, current)]
        if sizes[0] != sizes[1]:
            first, second = (
                self._join_root(self.data_infos[k]["cams"][CAMERAS[0]]["data_path"])
                for k in (i, index)
            )
            raise ValueError(
                f"the images of sample {self.data_infos[i]['token']} ({first}) are {sizes[0]} after the "
                f"pipeline, those of sample {self.data_infos[index]['token']} ({second}) are {sizes[1]}: "
                "all must have one size; use the original images"
            )

    def prepare_test_data(self, index):
        """One frame; `can_bus` is absolute, the model takes the differences."""
        return self._run_pipeline(index)

    def _run_pipeline(self, index):
        frame = self.get_data_info(index)
        self.pre_pipeline(frame)
        return self.pipeline(frame)

    def _history_indices(self, index):
        """T - 1 of the T frames before `index`, in time order; frame 0 stands for those before it."""
        before = np.arange(index - self.queue_length, index)
        chosen = np.random.choice(before, self.queue_length - 1, replace=False)
        return np.sort(chosen).clip(min=0).tolist()

    def get_data_info(self, index):
        """What the pipeline starts from, all of it new objects.

        Returns:
            dict of sample_idx, prev_idx, next_idx (sample tokens), scene_token, frame_idx,
            timestamp (s), pts_filename, can_bus (18,), img_filename (N paths),
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
            "pts_filename": self._join_root(info["lidar_path"]),
            "can_bus": self._can_bus(info),
        }
        cameras = [info["cams"][name] for name in CAMERAS]
        frame["img_filename"] = [self._join_root(camera["data_path"]) for camera in cameras]
        frame["lidar2cam"] = [_lidar2cam(camera) for camera in cameras]
        frame["cam2img"] = [_cam2img(camera) for camera in cameras]
        frame["lidar2img"] = [k @ e for k, e in zip(frame["cam2img"], frame["lidar2cam"])]
        if not self.test_mode:
            frame["ann_info"] = self.get_ann_info(index)
        return frame

    def get_ann_info(self, index):
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

    def info_with_paths(self, index):
        """A copy of a record whose paths lead to the files, also where another machine wrote the file."""
        info = self.data_infos[index]
        info["lidar_path"] = self._join_root(info["lidar_path"])
        for camera in info["cams"].values():
            camera["data_path"] = self._join_root(camera["data_path"])
        return info

    def _join_root(self, path):
        if self._moved:
            path = path_below_root(path) or path
        return join_root(self.data_root, path)

    def _can_bus(self, info):
        """(18,) vector with the ego pose of the tables in place of the CAN bus's own."""
        can_bus = np.array(info["can_bus"], dtype=np.float64)
        if self.can_bus_message == "official" and "can_bus_motion_after" in info:
            can_bus[CAN_MOTION] = info["can_bus_motion_after"]
        w, x, y, z = info["ego2global_rotation"]
        official = self.can_bus_quaternion == "official"
        can_bus[CAN_ORIENTATION] = (w, w, w, w) if official else (w, x, y, z)
        can_bus[CAN_POSITION] = info["ego2global_translation"]
        heading = Rotation.from_quat((x, y, z, w)).as_matrix()[:, 0]
        yaw_rad = np.arctan2(heading[1], heading[0]) % (2 * np.pi)
        can_bus[CAN_YAW_RAD] = yaw_rad
        can_bus[CAN_YAW_DEG] = np.rad2deg(yaw_rad)
        return can_bus

    def format_results(self, results, jsonfile_prefix=None):
        """Write detections as a nuScenes submission.

        Args:
            results: one {"pts_bbox": {"boxes_3d", "scores_3d", "labels_3d"}} a frame, in dataset order.
            jsonfile_prefix: folder to write below; a temporary one where None.

        Returns:
            result_files: {"pts_bbox": path of results_nusc.json}.
            tmp_dir: the TemporaryDirectory, or None; the files live as long as it.

        Raises:
            ValueError: not one result a frame, or a box that the benchmark does not accept.
        """
        tmp_dir = None
        if jsonfile_prefix is None:
            tmp_dir = tempfile.TemporaryDirectory()
            jsonfile_prefix = tmp_dir.name
        path = self._write(self._boxes(results), osp.join(jsonfile_prefix, "pts_bbox"))
        return {"pts_bbox": path}, tmp_dir

    def _boxes(self, results):
        """`Boxes` of `results` as in `format_results`."""
        if len(results) != len(self):
            raise ValueError(
                f"{len(results)} results for {len(self)} frames of {self.ann_file}: every frame "
                "needs one, in order"
            )
        return detected_boxes(
            [result["pts_bbox"] for result in results],
            self.data_infos,
            self.CLASSES,
            self.eval_detection_configs,
        )

    def _write(self, boxes, folder):
        path = osp.join(folder, "results_nusc.json")
        tokens = [info["token"] for info in self.data_infos]
        write_result_file(boxes, tokens, self.modality, self.eval_detection_configs, path)
        return path

    def evaluate(
        self,
        results,
        metric="bbox",
        logger=None,
        jsonfile_prefix=None,
        result_names=("pts_bbox",),
        pipeline=None,
        devkit=False,
    ):
        """Score detections as the nuScenes benchmark does.

        Args:
            results: as in `format_results`.
            metric: "bbox", the only one.
            logger: gets the headline; the root logger where None.
            jsonfile_prefix: folder below which results and metrics stay; nothing stays where None.
            result_names: ("pts_bbox",), the only one.
            pipeline: read by no one; mmdet3d's evaluation hook passes it.
            devkit: let the nuScenes devkit score, which needs the tables and draws curves.

        Returns:
            dict of float, see `metric_dict`.

        Raises:
            FileNotFoundError: the tables are needed and not there.
            ValueError: another metric; the split cannot be scored, or not all of its samples are there;
                or see `format_results`.
        """
        if metric not in ("bbox", ["bbox"]) or list(result_names) != ["pts_bbox"]:
            raise ValueError(
                f'only metric "bbox" of "pts_bbox" can be evaluated, not {metric!r} of {result_names!r}'
            )
        logger = get_root_logger() if logger is None else logger
        split = self._evaluated_split()
        if devkit:
            with tempfile.TemporaryDirectory() as scratch:
                folder = osp.join(
                    scratch if jsonfile_prefix is None else jsonfile_prefix, "pts_bbox"
                )
                path = self._write(self._boxes(results), folder)
                return metric_dict(score_with_devkit(path, split, folder, logger))
        truth = split.ground_truth(logger)
        boxes = self._boxes(results)
        folder = None
        if jsonfile_prefix is not None:
            folder = osp.join(jsonfile_prefix, "pts_bbox")
            self._write(boxes, folder)
        return self._score(boxes, truth, self.modality, folder, logger)

    def evaluate_file(self, path, folder, logger=None, devkit=False):
        """Score a nuScenes submission of this data set, written here or elsewhere.

        Args:
            path: `results_nusc.json`; its samples may be in any order.
            folder: gets `metrics_summary.json` and `metrics_details.json`.
            logger: gets the headline; the root logger where None.
            devkit: as in `evaluate`.

        Returns:
            dict of float, see `metric_dict`.

        Raises:
            FileNotFoundError: no such file, or the tables are needed and not there.
            ValueError: the split cannot be scored, or the file is not a submission for it.
        """
        logger = get_root_logger() if logger is None else logger
        split = self._evaluated_split()
        truth = None if devkit else split.ground_truth(logger)
        tokens = [info["token"] for info in self.data_infos]
        boxes, meta = read_result_file(path, tokens, self.eval_detection_configs, str(split))
        if devkit:
            return metric_dict(score_with_devkit(path, split, folder, logger))
        return self._score(boxes, truth, meta, folder, logger)

    def _evaluated_split(self):
        return EvaluatedSplit(
            infos=self.data_infos[:],
            tokens=self._tokens_of_file,
            metadata=self.metadata,
            ann_file=self.ann_file,
            data_root=self.data_root,
            config=self.eval_detection_configs,
        )

    def _score(self, boxes, truth, meta, folder, logger):
        if not len(boxes):
            logger.warning(
                "not a single detection within the benchmark's range: all scores are zero"
            )
        summary = score(boxes, truth, self.eval_detection_configs, meta, folder)
        logger.info(
            "nuScenes %s: mAP %.4f, NDS %.4f, scored in %.1f s",
            self._evaluated_split(), summary["mean_ap"], summary["nd_score"], summary["eval_time"],
        )  # fmt: skip
        return metric_dict(summary)


def _image_hw(images):
    """Height and width of the images of a frame: one tensor, or N byte images."""
    if isinstance(images, torch.Tensor) and images.dtype != torch.uint8:
        return tuple(images.shape[-2:])
    return tuple(images[0].shape[:2])


def _stack_queue(frames):
    """`img` of T frames, each one tensor or N byte images, as one container."""
    if isinstance(frames[0].data, torch.Tensor):
        return DataContainer(
            torch.stack([frame.data for frame in frames]),
            stack=True,
            pad_dims=frames[0].pad_dims,
        )
    stacked = stack_byte_images([image for frame in frames for image in frame.data])
    images = rearrange(stacked.data, "(t n) h w c -> t n h w c", t=len(frames))
    return DataContainer(images, stack=True, pad_dims=stacked.pad_dims)


def relative_metas(metas):
    """Turn the metas of a queue into what training takes; the given metas stay as they are.

    Args:
        metas: T metas in time order, `can_bus` absolute.

    Returns:
        T new metas with `prev_bev_exists`. Position and yaw in degrees in `can_bus` are minus those of
        the frame before in the queue; 0 for the first frame and after a change of scene.
    """
    queue = []
    previous = None
    for meta in metas:
        can_bus = meta["can_bus"].copy()
        same_scene = previous is not None and previous["scene_token"] == meta["scene_token"]
        for columns in (CAN_POSITION, CAN_YAW_DEG):
            can_bus[columns] = can_bus[columns] - previous["can_bus"][columns] if same_scene else 0
        queue.append({**meta, "can_bus": can_bus, "prev_bev_exists": same_scene})
        previous = meta
    return queue


def _lidar2cam(camera):
    rotation = np.asarray(camera["sensor2lidar_rotation"])
    matrix = np.eye(4)
    matrix[:3, :3] = rotation.T
    matrix[:3, 3] = -rotation.T @ camera["sensor2lidar_translation"]
    return matrix


def _cam2img(camera):
    matrix = np.eye(4)
    matrix[:3, :3] = camera["cam_intrinsic"]
    return matrix


def _check_option(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
