"""The detector of BEVFormer v2: fused frames, and a second head on the single images.

Shape legend: B batch, F frames, N cameras, L levels, C channels, Q BEV queries.
"""

import torch
from mmdet.models.builder import DETECTORS, build_head
from mmdet3d.core import bbox3d2result

from projects.bevformer.geometry.poses import check_frame_offsets
from projects.bevformer.model.bevformer import BEVFormer, frozen
from projects.bevformer.model.mm.sync_batch_norm import on_any_device
from projects.bevformer.transfer import upload


@DETECTORS.register_module()
class BEVFormerV2(BEVFormer):
    """BEVFormer with perspective supervision; frames are encoded one by one and fused.

    Args:
        img_backbone, img_neck, pts_bbox_head, use_grid_mask, train_cfg, test_cfg, pretrained: as in
            BEVFormer. SyncBN of the backbone works on CPUs too.
        fcos3d_bbox_head: config of the perspective head, or None for none. It is for training only.
        num_levels: levels of the neck that the BEV head reads, the first so many; None for all.
        num_mono_levels: levels that the perspective head reads; None for all.
        mono_loss_weight: factor of the losses of the perspective head.
        frames: offsets of the frames, as in PerceptionTransformerV2 and in the dataset.
        video_test_mode: accepted because published configs give it; only False is possible.

    Raises:
        ValueError: `video_test_mode`, or `frames` that are not those of the transformer.

    Source: BEVFormer v2 (arXiv 2211.10439), without the two-stage queries of its section 3.3.
    """

    def __init__(
        self,
        img_backbone,
        img_neck,
        pts_bbox_head,
        fcos3d_bbox_head=None,
        num_levels=None,
        num_mono_levels=None,
        mono_loss_weight=1.0,
        frames=(0,),
        use_grid_mask=False,
        video_test_mode=False,
        train_cfg=None,
        test_cfg=None,
        pretrained=None,
        init_cfg=None,
    ):
        if video_test_mode:
            raise ValueError(
                "BEVFormerV2 carries nothing from frame to frame: video_test_mode=False"
            )
        if img_backbone.get("norm_cfg"):
            norm_cfg = on_any_device(img_backbone["norm_cfg"])
            img_backbone = dict(img_backbone, norm_cfg=norm_cfg)
        super().__init__(
            img_backbone,
            img_neck,
            pts_bbox_head,
            use_grid_mask=use_grid_mask,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            pretrained=pretrained,
            init_cfg=init_cfg,
        )
        self.fcos3d_bbox_head = build_head(fcos3d_bbox_head) if fcos3d_bbox_head else None
        self.num_levels = num_levels
        self.num_mono_levels = num_mono_levels
        self.mono_loss_weight = mono_loss_weight
        self.frames = tuple(frames)
        check_frame_offsets(self.frames)
        fused = self.pts_bbox_head.transformer.frames
        if fused != self.frames:
            raise ValueError(f"frames of the model are {self.frames}, of its transformer {fused}")

    def extract_feat(self, img, img_metas=None):
        """Image features of one frame.

        Images of samples whose meta says `image_flip` are mirrored for the backbone, and their
        features are mirrored back: an augmentation that leaves the geometry alone.

        Args:
            img: (B, N, 3, H, W).
            img_metas: B metas; None mirrors nothing.

        Returns:
            L tensors (B, N, C, h, w).
        """
        flips = [bool(meta.get("image_flip")) for meta in img_metas or ()]
        if not any(flips):
            return super().extract_feat(img, img_metas)
        flipped = upload(torch.tensor(flips), img.device)[:, None, None, None, None]
        levels = super().extract_feat(torch.where(flipped, img.flip(-1), img), img_metas)
        return [torch.where(flipped, level.flip(-1), level) for level in levels]

    def forward_train(self, img, img_metas, gt_bboxes_3d, gt_labels_3d):
        """Losses of the current frame of each sample.

        Args:
            img: (B, F, N, 3, H, W), in the order of `frames`.
            img_metas: B dicts {offset: meta}, one a frame; `frame_exists` is False for a frame that
                the scene does not have. The current frame's has `mono_objects`, {camera: dict}, see
                LocationTargets.assign, for the perspective head.
            gt_bboxes_3d: B LiDARInstance3DBoxes with 9 columns.
            gt_labels_3d: B (G,) long tensors.

        Returns:
            dict of losses, those of the perspective head with `_mono` behind their name.

        Raises:
            ValueError: the frames of the metas are not those of the model.
        """
        metas = [queue[0] for queue in img_metas]
        feats, outputs = self._detect(img, img_metas)
        losses = self.pts_bbox_head.loss(gt_bboxes_3d, gt_labels_3d, outputs, img_metas=metas)
        if self.fcos3d_bbox_head is not None:
            mono_losses = self._mono_losses(feats[: self.num_mono_levels], metas)
            losses.update(
                {f"{name}_mono": self.mono_loss_weight * v for name, v in mono_losses.items()}
            )
        return losses

    def _detect(self, img, img_metas):
        """Features of the current frame and the predictions for it.

        (B, F, N, 3, H, W) images and B dicts {offset: meta}.
        """
        self._check_frames(img_metas)
        metas = [queue[0] for queue in img_metas]
        hits = self.camera_hits(img, img_metas)
        prev_bev, has_prev = self.obtain_history_bev(img, img_metas, hits)
        current = self.frames.index(0)
        feats = self.extract_feat(img[:, current], metas)
        levels = feats[: self.num_levels]
        outputs = self.pts_bbox_head(levels, metas, prev_bev, has_prev=has_prev, hits=hits[current])
        return feats, outputs

    def _check_frames(self, img_metas):
        """Raise ValueError unless the metas are of the frames of the model."""
        for queue in img_metas:
            if tuple(queue) != self.frames:
                raise ValueError(
                    f"frames of the dataset are {tuple(queue)}, of the model {self.frames}"
                )

    def _mono_losses(self, feats, metas):
        """Losses of the perspective head on the cameras that see an object."""
        if "mono_objects" not in metas[0]:
            raise ValueError(
                "fcos3d_bbox_head needs objects in the single images: set mono_cfg of the dataset and "
                "end its pipeline with DD3DMapper, or set fcos3d_bbox_head=None"
            )
        pairs = [(b, camera) for b, meta in enumerate(metas) for camera in meta["mono_objects"]]
        objects = [metas[b]["mono_objects"][camera] for b, camera in pairs]
        num_cameras = feats[0].shape[1]
        images = upload(torch.tensor([b * num_cameras + n for b, n in pairs]), feats[0].device)
        feats = [level.flatten(0, 1).index_select(0, images) for level in feats]
        return self.fcos3d_bbox_head.loss(feats, objects)

    def obtain_history_bev(self, img, img_metas, hits=None):
        """BEVs of the frames besides the current one, in eval mode and without gradient.

        Args:
            img: (B, F, N, 3, H, W).
            img_metas: B dicts {offset: meta}.
            hits: CameraHits of each frame; None finds them frame by frame.

        Returns:
            prev_bev: for each frame (B, Q, C), or None where no sample has it and for the current
                one; None altogether where there is only the current frame.
            has_prev: for each frame B bools, which samples have it.
        """
        has_prev = [[bool(q[offset]["frame_exists"]) for q in img_metas] for offset in self.frames]
        if len(self.frames) == 1:
            return None, has_prev
        prev_bev = []
        with frozen(self):
            for t, offset in enumerate(self.frames):
                bev = None
                if offset != 0 and any(has_prev[t]):
                    metas = [queue[offset] for queue in img_metas]
                    feats = self.extract_feat(img[:, t], metas)
                    levels, seen = feats[: self.num_levels], hits[t] if hits else None
                    bev = self.pts_bbox_head(levels, metas, only_bev=True, hits=seen)
                prev_bev.append(bev)
        return prev_bev, has_prev

    def forward_test(self, img, img_metas):
        """Boxes of the current frame of each sample.

        Args:
            img: a list with one (B, F, N, 3, H, W) tensor.
            img_metas: a list with B metas of the current frames; `frames` in them is {offset: meta}.

        Returns:
            B dicts {"pts_bbox": {"boxes_3d", "scores_3d", "labels_3d"}} on the CPU.

        Raises:
            ValueError: more than one augmentation, or frames that are not those of the model.
        """
        if len(img) != 1 or len(img_metas) != 1:
            raise ValueError(f"BEVFormerV2 tests one augmentation, got {len(img)}")
        images, metas = img[0], img_metas[0]
        _, outputs = self._detect(images, [{**meta["frames"], 0: meta} for meta in metas])
        return [
            dict(pts_bbox=bbox3d2result(*boxes))
            for boxes in self.pts_bbox_head.get_bboxes(outputs, metas)
        ]
