"""One layer of the detection decoder.

Shape legend: B batch, O object queries, R groups of them, C channels.
"""

from einops import rearrange
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER

from projects.bevformer.model.post_norm_layer import POST_NORM, PostNormLayer
from projects.bevformer.published import published


@TRANSFORMER_LAYER.register_module()
@published(ignores=("batch_first",), only={"operation_order": POST_NORM})
class BEVFormerDecoderLayer(PostNormLayer):
    """Self-attention among objects, attention to the BEV, feed-forward; arguments as in PostNormLayer.

    The first attention is mmcv's MultiheadAttention, the second one CustomMSDeformableAttention or any
    other module with its `forward`.
    """

    attention_options = (dict(batch_first=True), {})

    def forward(self, query, reference_xy, context):
        """Refine the object queries.

        Args:
            query: (B, R * O, C) object queries.
            reference_xy: (B, R * O, 2) where each object is searched, fractions of the grid.
            context: ObjectContext.

        Returns:
            (B, R * O, C).
        """
        self_attention, bev_attention = self.attentions
        groups = context.num_groups
        grouped = rearrange(query, "b (r o) c -> (b r) o c", r=groups)
        grouped_pos = rearrange(context.query_pos, "b (r o) c -> (b r) o c", r=groups)
        grouped = self_attention(grouped, query_pos=grouped_pos, key_pos=grouped_pos)
        query = self.norms[0](rearrange(grouped, "(b r) o c -> b (r o) c", r=groups))
        query = self.norms[1](bev_attention(query, reference_xy, context))
        return self.norms[2](self.ffns[0](query))
