"""nuScenes as the current frame and chosen frames around it, for BEVFormer v2.

Shape legend: F frames, N cameras, H height, W width, G ground truths.
"""

import torch
from mmcv.parallel import DataContainer
from mmdet3d.datasets.builder import DATASETS

from projects.bevformer.datasets.temporal_nuscenes import TemporalNuScenesDataset
from projects.bevformer.geometry.poses import adjacent_to_current, check_frame_offsets, pose_matrix
from projects.bevformer.nuscenes.camera_objects import camera_objects

# What published pipelines collect besides, and nobody reads.
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
        frames: offsets in key frames, in time order; 0 is the current one.
        mono_cfg: None, or in training dict(min_num_lidar_points=3, min_box_visibility=0.2) of the
            objects in single images; `name` and `data_root` are accepted because published configs
            give them: the objects come from the info file.
        overlap_test: accepted because published configs may give it; only False is possible.
        ann_file, pipeline, data_root, classes, load_interval, with_velocity, modality, box_type_3d,
            filter_empty_gt, test_mode, eval_version, use_valid_flag: as in TemporalNuScenesDataset.

    Raises:
        ValueError: `frames`, `mono_cfg` or `overlap_test` are not as above.
        FileNotFoundError, ValueError: see TemporalNuScenesDataset.

    Source: BEVFormer v2 (arXiv 2211.10439), section 3.4.
    """

    def __init__(
        self,
        ann_file,
        frames=(0,),
        mono_cfg=None,
        pipeline=None,
        data_root=None,
        classes=None,
        load_interval=1,
        with_velocity=True,
        modality=None,
        box_type_3d="LiDAR",
        filter_empty_gt=True,
        test_mode=False,
        eval_version="detection_cvpr_2019",
        use_valid_flag=False,
        overlap_test=False,
    ):
        self.frames = tuple(frames)
        check_frame_offsets(self.frames)
        if overlap_test:
            raise ValueError("CustomNuScenesDatasetV2 has no overlap_test: set it to False")
        self.mono_options = None if mono_cfg is None else _mono_options(**mono_cfg)
        super().__init__(
            ann_file,
            pipeline=pipeline,
            data_root=data_root,
            classes=classes,
            queue_length=len(self.frames),
            load_interval=load_interval,
            with_velocity=with_velocity,
            modality=modality,
            box_type_3d=box_type_3d,
            filter_empty_gt=filter_empty_gt,
            test_mode=test_mode,
            eval_version=eval_version,
            use_valid_flag=use_valid_flag,
            can_bus_message="official",  # the model reads no can_bus; any info file will do
        )

    def prepare_train_data(self, index):
        """The frames of an item.

        Returns:
            None where the current frame has no object and `filter_empty_gt` is set, or where
            `mono_cfg` is given and no camera sees one; else a dict:
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

    def prepare_test_data(self, index):
        """The frames of an item, as MultiScaleFlipAug3D gives them.

        Returns:
            dict of lists with one entry an augmentation. img: DataContainers of (F, N, 3, H, W).
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
        """{offset: collected frame}, None for those that the scene does not have."""
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
        if not 0 <= index + offset < len(self.data_infos):
            return False
        scenes = [self.data_infos[i]["scene_token"] for i in (index, index + offset)]
        return scenes[0] == scenes[1]

    def _collect(self, index, current_index, augmentation):
        """A frame through the pipeline, its cameras projected from the lidar of the current frame.

        Args:
            index: of the frame.
            current_index: of the current frame.
            augmentation: what augmentation steps draw is written into it by the first frame that
                comes through, and taken from it by the others.
        """
        frame = self.get_data_info(index)
        frame.update(aug_param=augmentation, mono_input_dict=None, mono_ann_idx=None)
        info = self.data_infos[index]
        frame.update({name: info[name] for name in _POSES})
        if index != current_index:
            current2adjacent = adjacent_to_current(
                _lidar2global(self.data_infos[current_index]), _lidar2global(info)
            )
            for key in ("lidar2cam", "lidar2img"):
                frame[key] = [matrix @ current2adjacent for matrix in frame[key]]
        elif self.mono_options is not None and not self.test_mode:
            frame["mono_input_dict"] = camera_objects(info, self.cat2id, **self.mono_options)
        self.pre_pipeline(frame)
        return self.pipeline(frame)


def _mono_options(name=None, data_root=None, min_num_lidar_points=3, min_box_visibility=0.2):
    return {"min_points": min_num_lidar_points, "min_visibility": min_box_visibility}


def _lidar2global(info):
    lidar2ego = pose_matrix(info["lidar2ego_rotation"], info["lidar2ego_translation"])
    ego2global = pose_matrix(info["ego2global_rotation"], info["ego2global_translation"])
    return ego2global @ lidar2ego


def _stack(queue, augmentation):
    """Images and metas of an item; the current frame's fill the place of one that does not exist.

    Args:
        queue: {offset: collected frame or None}.
        augmentation: what was drawn for all of them.

    Returns:
        DataContainer of (F, N, 3, H, W), {offset: meta}.
    """
    image_draw = augmentation.get("CropResizeFlipImage", {})
    bev_draw = augmentation.get("GlobalRotScaleTransImage", {})
    drawn = {
        "image_flip": image_draw.get("flip", False),
        "bev_augmentation": bev_draw["matrix"] if bev_draw.get("only_gt") else None,
    }
    metas = {
        offset: dict((frame or queue[0])["img_metas"].data, frame_exists=bool(frame), **drawn)
        for offset, frame in queue.items()
    }
    images = [(frame or queue[0])["img"].data for frame in queue.values()]
    return DataContainer(torch.stack(images), stack=True), metas
