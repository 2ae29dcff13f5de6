"""The detector of BEVFormer v2: fused frames, and a second head on the single images.

Shape legend: B batch, F frames, N cameras, L levels, C channels, Q BEV queries.
"""

import torch
from mmdet.models.builder import DETECTORS, build_head

from projects.bevformer.geometry.bev_warp import warp_bev
from projects.bevformer.model.bevformer import EMPTY_SLOTS, BEVFormer, QueueBEV, eval_no_grad
from projects.bevformer.model.frame import Frame
from projects.bevformer.published import published
from projects.bevformer.transfer import upload


@DETECTORS.register_module()
@published(ignores=("test_cfg",), only={"video_test_mode": False})
@published(only=EMPTY_SLOTS, why="this network has cameras and heads on the BEV only")
class BEVFormerV2(BEVFormer):
    """BEVFormer with perspective supervision; frames are encoded one by one and fused.

    It carries nothing from frame to frame at test time.

    Args:
        img_backbone, img_neck, pts_bbox_head, heads, use_grid_mask, num_levels, train_cfg, pretrained: as
            in BEVFormer.
        fcos3d_bbox_head: config of the perspective head, or None for none. It is for training only.
        num_mono_levels: levels that the perspective head reads; None for all.
        mono_loss_weight: factor of the losses of the perspective head.
        frames: offsets of the frames, as in PerceptionTransformerV2 and in the dataset.

    Raises:
        ValueError: `frames` are not those of the transformer; see BEVFormer.

    Source: BEVFormer v2 (arXiv 2211.10439), without the two-stage queries of its section 3.3.
    """

    def __init__(
        self,
        img_backbone,
        img_neck,
        pts_bbox_head,
        heads=(),
        fcos3d_bbox_head=None,
        num_levels=None,
        num_mono_levels=None,
        mono_loss_weight=1.0,
        frames=(0,),
        use_grid_mask=False,
        train_cfg=None,
        pretrained=None,
        init_cfg=None,
    ):
        super().__init__(
            img_backbone,
            img_neck,
            pts_bbox_head,
            heads=heads,
            use_grid_mask=use_grid_mask,
            num_levels=num_levels,
            train_cfg=train_cfg,
            pretrained=pretrained,
            init_cfg=init_cfg,
        )
        self.fcos3d_bbox_head = build_head(fcos3d_bbox_head) if fcos3d_bbox_head else None
        self.num_mono_levels = num_mono_levels
        self.mono_loss_weight = mono_loss_weight
        self.frames = tuple(frames)
        fused = self.pts_bbox_head.transformer.frames
        if fused != self.frames:
            raise ValueError(f"frames of the model are {self.frames}, of its transformer {fused}")

    def bev_of_queue(self, img, img_metas, state=None):
        """The fused BEV of the current frame of each sample.

        Args:
            img: (B, F, N, 3, H, W), in the order of `frames`.
            img_metas: B dicts {offset: meta}, one per frame; `frame_exists` is False for a frame that the
                scene does not have.
            state: unused: nothing is carried from frame to frame.

        Returns:
            QueueBEV.

        Raises:
            ValueError: the frames of the metas are not those of the model.
        """
        offsets = {tuple(queue) for queue in img_metas}
        if offsets != {self.frames}:
            raise ValueError(f"frames of the dataset are {offsets}, of the model {self.frames}")
        head, current = self.pts_bbox_head, self.frames.index(0)
        metas = [[queue[offset] for queue in img_metas] for offset in self.frames]
        # 1. visible queries of all frames, with a single device sync
        frames = [Frame.from_metas(frame_metas, device=img.device) for frame_metas in metas]
        frames = head.find_visible(frames)
        # 2. the other frames, without gradient
        bevs = [None] * len(frames)
        if len(frames) > 1:
            with eval_no_grad(self):
                for t, frame in enumerate(frames):
                    if t != current and frame.exists is not False:
                        bevs[t] = self._augmented(self.encode(img[:, t], frame), frame)
        # 3. the current frame
        frame = frames[current]
        feats = self.extract_feat(img[:, current], image_flip=frame.image_flip)
        bev = head.encode(feats[: self.num_levels], frame)
        bevs[current] = self._augmented(bev, frame)
        # 4. fusion
        exists = [frame.exists for frame in frames]
        fused = head.transformer.fuse(bevs, exists, (head.bev_h, head.bev_w))
        return QueueBEV(fused, metas[current], feats)

    def _augmented(self, bev, frame):
        """(B, Q, C) BEV features moved as the boxes were moved by GlobalRotScaleTransImage."""
        if frame.bev_augmentation is None:
            return bev
        head = self.pts_bbox_head
        bev_hw, pc_range = (head.bev_h, head.bev_w), head.transformer.encoder.pc_range
        return warp_bev(bev, frame.bev_augmentation, bev_hw, pc_range)

    def losses(self, queue, targets):
        """Losses of all heads, those of the perspective head with the suffix `_mono`.

        Args:
            queue: QueueBEV; its metas hold `mono_objects`, {camera: dict}, see LocationAssigner.
            targets: as in BEVFormer.

        Raises:
            ValueError: there is a perspective head, and the metas hold no objects for it.
        """
        losses = super().losses(queue, targets)
        if self.fcos3d_bbox_head is not None:
            mono_losses = self._mono_losses(queue.feats[: self.num_mono_levels], queue.metas)
            losses.update({f"{n}_mono": self.mono_loss_weight * v for n, v in mono_losses.items()})
        return losses

    def _mono_losses(self, feats, metas):
        """Losses of the perspective head on the cameras that see an object."""
        if "mono_objects" not in metas[0]:
            raise ValueError(
                "fcos3d_bbox_head needs objects in the single images: set mono_cfg of the dataset "
                "and end its pipeline with DD3DMapper, or set fcos3d_bbox_head=None"
            )
        pairs = [(b, camera) for b, meta in enumerate(metas) for camera in meta["mono_objects"]]
        objects = [metas[b]["mono_objects"][camera] for b, camera in pairs]
        num_cameras = feats[0].shape[1]
        images = upload(torch.tensor([b * num_cameras + n for b, n in pairs]), feats[0].device)
        feats = [level.flatten(0, 1).index_select(0, images) for level in feats]
        return self.fcos3d_bbox_head.loss(feats, objects)
