"""The detection decoder: object queries refine where they look, layer by layer.

Shape legend: B batch, O object queries, C channels, X decoder layers.
"""

import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmcv.runner import BaseModule
from mmdet.models.utils.transformer import inverse_sigmoid

from projects.bevformer.geometry.boxes import CX, CY, CZ
from projects.bevformer.model.post_norm_layer import build_layers
from projects.bevformer.published import published


@TRANSFORMER_LAYER_SEQUENCE.register_module()
@published(only={"return_intermediate": True})
class DetectionTransformerDecoder(BaseModule):
    """A stack of decoder layers with iterative refinement of the reference points.

    Args:
        transformerlayers: config of every layer, or a list with the config of each.
        num_layers: X.

    Source: DETR3D (arXiv 2110.06922), section 3.2; Deformable DETR (arXiv 2010.04159), appendix A.4.
    """

    def __init__(self, transformerlayers, num_layers, init_cfg=None):
        super().__init__(init_cfg)
        self.layers = build_layers(transformerlayers, num_layers)

    def forward(self, query, reference_points, context, reg_branches):
        """Decode.

        Args:
            query: (B, O, C) content part of the object queries.
            reference_points: (B, O, 3) x, y, z as fractions of the detection range.
            context: ObjectContext.
            reg_branches: X modules that predict a box code from (B, O, C), or None for no refinement.

        Returns:
            states: (X, B, O, C) queries after each layer.
            references: (X, B, O, 3) the points that each layer started from, fractions.
        """
        states, references = [], []
        for i, layer in enumerate(self.layers):
            references.append(reference_points)
            query = layer(query, reference_points[..., :2], context)
            states.append(query)
            if reg_branches is not None:
                code = reg_branches[i](query).float()
                # Column by column: indexing with a list would copy it to the device and force a sync.
                update = torch.stack([code[..., column] for column in (CX, CY, CZ)], dim=-1)
                refined = (update + inverse_sigmoid(reference_points)).sigmoid()
                reference_points = refined.detach()
        return torch.stack(states), torch.stack(references)
