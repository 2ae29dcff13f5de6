import pytest
import torch
from mmcv.cnn.bricks.transformer import build_transformer_layer
from tiny_bevformer import encoder_config, shake_weights


def make_layer():
    layer = build_transformer_layer(encoder_config()["transformerlayers"])
    shake_weights(layer)
    return layer


def test_each_step_is_followed_by_its_norm(frame_context, bev_query):
    layer, context, query = make_layer(), frame_context(), bev_query()
    temporal, spatial = layer.attentions
    expected = layer.norms[0](temporal(query, context))
    expected = layer.norms[1](spatial(expected, context))
    hidden = layer.ffns[0].layers[0][0](expected).relu()
    expected = layer.norms[2](expected + layer.ffns[0].layers[1](hidden))
    torch.testing.assert_close(layer(query, context), expected)


def test_inputs_are_not_modified(frame_context, bev_query):
    layer, context, query = make_layer(), frame_context(), bev_query()
    fields = ("prev_and_current", "bev_queries", "bev_pos", "image_features")
    kept = [query, *(getattr(context, field) for field in fields)]
    before = [tensor.clone() for tensor in kept]
    layer(query, context)
    assert all(torch.equal(now, then) for now, then in zip(kept, before))


def test_other_operation_orders_are_rejected():
    config = dict(encoder_config()["transformerlayers"])
    config["operation_order"] = ("norm", "self_attn", "norm", "cross_attn", "norm", "ffn")
    with pytest.raises(ValueError, match="set operation_order="):
        build_transformer_layer(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_cfgs": []}, "must hold two attentions, got 0"),
        ({"temporal": {"embed_dims": 32}}, r"embed_dims \[16, 32\]: set one for all"),
        ({"spatial": {"embed_dims": 32}}, r"embed_dims \[16, 32\]"),
        ({"inner": {"embed_dims": 32}}, r"embed_dims \[16, 32\]"),
    ],
)
def test_mismatched_attentions_are_rejected(changes, message):
    config = encoder_config()["transformerlayers"]
    temporal, spatial = config["attn_cfgs"]
    temporal.update(changes.get("temporal", {}))
    spatial.update(changes.get("spatial", {}))
    spatial["deformable_attention"].update(changes.get("inner", {}))
    config["attn_cfgs"] = changes.get("attn_cfgs", config["attn_cfgs"])
    with pytest.raises(ValueError, match=message):
        build_transformer_layer(config)
