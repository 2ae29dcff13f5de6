"""nuScenes as the current frame and given frames around it, for BEVFormer v2.

Shape legend: F frames, N cameras, H height, W width, G ground truths.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
from mmcv.parallel import DataContainer
from mmdet3d.datasets.builder import DATASETS

from projects.bevformer.datasets.pipelines.view_augmentation import drawn_for_network
from projects.bevformer.datasets.temporal_nuscenes import TemporalNuScenesDataset
from projects.bevformer.geometry.poses import adjacent_to_current, check_frame_offsets
from projects.bevformer.nuscenes.camera_objects import camera_objects
from projects.bevformer.nuscenes.info_list import column
from projects.bevformer.nuscenes.records import lidar2global_of

# Collected by published pipelines and unused.
_POSES = (
    "ego2global_translation",
    "ego2global_rotation",
    "lidar2ego_translation",
    "lidar2ego_rotation",
)


@DATASETS.register_module()
class CustomNuScenesDatasetV2(TemporalNuScenesDataset):
    """nuScenes for a model that fuses frames at fixed offsets.

    The cameras of the other frames are projected from the current frame's lidar: `lidar2cam` and
    `lidar2img` in their metas take points of that frame. All frames of an item are augmented alike.

    Args:
        ann_file: as in TemporalNuScenesDataset.
        frames: offsets in key frames, in time order; 0 is the current one.
        mono_cfg: None, or in training dict(min_num_lidar_points=3, min_box_visibility=0.2) of the
            objects in single images. They come from the info file; `name` and `data_root` of published
            configs are unused.
        options: other arguments of TemporalNuScenesDataset but `queue_length`.

    Raises:
        ValueError: `frames` or `mono_cfg` are not as above.
        FileNotFoundError, ValueError: see TemporalNuScenesDataset.

    Source: BEVFormer v2 (arXiv 2211.10439), section 3.4.
    """

    reads_can_bus = False
    moves_scene = True

    def __init__(
        self,
        ann_file: str,
        frames: Sequence[int] = (0,),
        mono_cfg: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.frames = tuple(frames)
        check_frame_offsets(self.frames)
        self.mono_options = None if mono_cfg is None else _mono_options(**mono_cfg)
        super().__init__(ann_file, queue_length=len(self.frames), **options)

    def prepare_train_data(self, index: int) -> dict | None:
        """The frames of an item.

        Returns:
            None if the current frame has no object and `filter_empty_gt` is set, or if `mono_cfg` is given
            and no camera sees one; else a dict:
            img: DataContainer of (F, N, 3, H, W).
            img_metas: DataContainer of {offset: meta}, with `frame_exists`, `image_flip` and
                `bev_augmentation`, see BEVFormerV2; with `mono_cfg` the current one has `mono_objects`.
            gt_bboxes_3d, gt_labels_3d: DataContainers; objects of the current frame.
        """
        augmentation = {}
        current = self._collect(index, index, augmentation)
        if current is None:
            return None
        if self.filter_empty_gt and not (current["gt_labels_3d"].data != -1).any():
            return None
        queue = self._around(index, current, augmentation)
        images, metas = _stack(queue, augmentation)
        if self.mono_options is not None:
            metas[0]["mono_objects"] = current["mono_input_dict"]
        return {
            "img": images,
            "img_metas": DataContainer(metas, cpu_only=True),
            "gt_bboxes_3d": current["gt_bboxes_3d"],
            "gt_labels_3d": current["gt_labels_3d"],
        }

    def prepare_test_data(self, index: int) -> dict:
        """The frames of an item, in the format of MultiScaleFlipAug3D.

        Returns:
            dict of lists with one entry per augmentation. img: DataContainers of (F, N, 3, H, W).
            img_metas: DataContainers of the current frame's meta; `frames` in it is {offset: meta}.
        """
        augmentation = {}
        current = self._collect(index, index, augmentation)
        queue = self._around(index, current, augmentation)
        example = {"img": [], "img_metas": []}
        for i in range(len(current["img"])):
            single = {
                offset: frame and {key: frame[key][i] for key in example}
                for offset, frame in queue.items()
            }
            images, metas = _stack(single, augmentation)
            example["img"].append(images)
            meta = dict(metas[0], frames=metas)
            example["img_metas"].append(DataContainer(meta, cpu_only=True))
        return example

    def _around(self, index, current, augmentation):
        """{offset: collected frame}, None for frames outside of the scene."""
        queue = {}
        for offset in self.frames:
            if offset == 0:
                queue[0] = current
            elif self._has_frame(index, offset):
                queue[offset] = self._collect(index + offset, index, augmentation)
            else:
                queue[offset] = None
        return queue

    def _has_frame(self, index, offset):
        scenes = column(self.data_infos, "scene_token")
        return 0 <= index + offset < len(scenes) and scenes[index] == scenes[index + offset]

    def _collect(self, index, current_index, augmentation):
        """A frame through the pipeline, its cameras projected from the lidar of the current frame.

        Args:
            index: of the frame.
            current_index: of the current frame.
            augmentation: random draws of the steps; the first frame to be collected fills it, the others
                use it.
        """
        frame = self.get_data_info(index)
        frame.update(aug_param=augmentation, mono_input_dict=None, mono_ann_idx=None)
        info = self.data_infos[index]
        frame.update({name: info[name] for name in _POSES})
        if index != current_index:
            current2adjacent = adjacent_to_current(
                lidar2global_of(self.data_infos[current_index]), lidar2global_of(info)
            )
            for key in ("lidar2cam", "lidar2img"):
                frame[key] = [matrix @ current2adjacent for matrix in frame[key]]
        elif self.mono_options is not None and not self.test_mode:
            frame["mono_input_dict"] = camera_objects(info, self.cat2id, **self.mono_options)
        return self._run_pipeline(index, frame)


def _mono_options(name=None, data_root=None, min_num_lidar_points=3, min_box_visibility=0.2):
    return {"min_points": min_num_lidar_points, "min_visibility": min_box_visibility}


def _stack(queue, augmentation):
    """Images and metas of an item; the current frame replaces those that do not exist.

    Args:
        queue: {offset: collected frame or None}.
        augmentation: the random draws, shared by all frames.

    Returns:
        DataContainer of (F, N, 3, H, W), {offset: meta}.
    """
    drawn = drawn_for_network(augmentation)
    metas = {
        offset: dict((frame or queue[0])["img_metas"].data, frame_exists=bool(frame), **drawn)
        for offset, frame in queue.items()
    }
    images = [(frame or queue[0])["img"].data for frame in queue.values()]
    return DataContainer(torch.stack(images), stack=True), metas
