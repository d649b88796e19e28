"""Which modules get adapters; apart from the model, so that a recipe is read without torch."""

TARGETS = (
    r"(language_model\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    r"|vision_tower\.(.*\.)?encoder\.layers\.\d+\..*\.?(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
    r"|multi_modal_projector\.linear"
    r"|position_embedding_3d\.position_embedding_head\.[03])"
)
"""Where the released recipe puts adapters; never ZoeDepth, the head or an embedding table."""
