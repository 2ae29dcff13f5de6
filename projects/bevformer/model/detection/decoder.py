"""The detection decoder: object queries refine where they look, layer by layer.

Shape legend: B batch, O object queries, Q BEV queries, C channels, X decoder layers.
"""

import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import build_transformer_layer
from mmcv.runner import BaseModule, ModuleList
from mmdet.models.utils.transformer import inverse_sigmoid

from projects.bevformer.geometry.boxes import CX, CY, CZ


@TRANSFORMER_LAYER_SEQUENCE.register_module()
class DetectionTransformerDecoder(BaseModule):
    """A stack of decoder layers with iterative refinement of the reference points.

    Args:
        transformerlayers: config of one layer. `DetrTransformerDecoderLayer`, the name in published
            configs, means BEVFormerDecoderLayer: the same parameters with explicit arguments.
        num_layers: X.
        return_intermediate: accepted because published configs give it; only True is possible.

    Raises:
        ValueError: `return_intermediate` is False.

    Source: DETR3D (arXiv 2110.06922), section 3.2; Deformable DETR (arXiv 2010.04159), appendix A.4.
    """

    def __init__(self, transformerlayers, num_layers, return_intermediate=True, init_cfg=None):
        super().__init__(init_cfg)
        if not return_intermediate:
            raise ValueError(
                "DetectionTransformerDecoder returns every layer, for the auxiliary losses"
            )
        layer_cfg = dict(transformerlayers)
        if layer_cfg["type"] == "DetrTransformerDecoderLayer":
            layer_cfg["type"] = "BEVFormerDecoderLayer"
        self.layers = ModuleList([build_transformer_layer(layer_cfg) for _ in range(num_layers)])

    def forward(self, query, query_pos, bev, bev_hw, reference_points, reg_branches, num_groups=1):
        """Decode.

        Args:
            query: (B, O, C) content part of the object queries.
            query_pos: (B, O, C) positional part.
            bev: (B, Q, C) BEV features.
            bev_hw: rows and columns of the BEV grid.
            reference_points: (B, O, 3) x, y, z as fractions of the detection range.
            reg_branches: X modules that predict a box code from (B, O, C), or None for no refinement.
            num_groups: the queries attend to one another only within each of so many groups.

        Returns:
            states: (X, B, O, C) queries after each layer.
            references: (X, B, O, 3) the points that each layer started from, fractions.
        """
        states, references = [], []
        for i, layer in enumerate(self.layers):
            references.append(reference_points)
            query = layer(query, query_pos, bev, bev_hw, reference_points[..., :2], num_groups)
            states.append(query)
            if reg_branches is not None:
                code = reg_branches[i](query).float()
                # Columns one by one: a list of them would be copied to a GPU, which waits for it.
                update = torch.stack([code[..., column] for column in (CX, CY, CZ)], dim=-1)
                refined = (update + inverse_sigmoid(reference_points)).sigmoid()
                reference_points = refined.detach()
        return torch.stack(states), torch.stack(references)
