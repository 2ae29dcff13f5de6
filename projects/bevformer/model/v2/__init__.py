"""BEVFormer v2: fused frames and the perspective head."""
