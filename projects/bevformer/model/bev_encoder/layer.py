"""One layer of the BEV encoder."""

from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER

from projects.bevformer.model.post_norm_layer import POST_NORM, PostNormLayer
from projects.bevformer.published import published


@TRANSFORMER_LAYER.register_module()
@published(ignores=("batch_first",), only={"operation_order": POST_NORM})
class BEVFormerLayer(PostNormLayer):
    """Temporal self-attention, spatial cross-attention, feed-forward; arguments as in PostNormLayer.

    Source: BEVFormer (arXiv 2203.17270), figure 2.
    """

    def forward(self, query, context):
        """Refine the BEV queries.

        Args:
            query: (B, Q, C) BEV queries.
            context: FrameContext of the frame.

        Returns:
            (B, Q, C).
        """
        temporal_self_attention, spatial_cross_attention = self.attentions
        query = self.norms[0](temporal_self_attention(query, context))
        query = self.norms[1](spatial_cross_attention(query, context))
        return self.norms[2](self.ffns[0](query))
