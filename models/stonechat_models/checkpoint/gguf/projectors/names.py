"""Where tensors of vision and audio parts belong in transformers' modules; see `Projector`."""

SIGLIP = {
    "v.patch_embd": "embeddings.patch_embedding",
    "v.position_embd": "embeddings.position_embedding",
    "v.blk.*.ln1": "encoder.layers.*.layer_norm1",
    "v.blk.*.attn_q": "encoder.layers.*.self_attn.q_proj",
    "v.blk.*.attn_k": "encoder.layers.*.self_attn.k_proj",
    "v.blk.*.attn_v": "encoder.layers.*.self_attn.v_proj",
    "v.blk.*.attn_out": "encoder.layers.*.self_attn.out_proj",
    "v.blk.*.ln2": "encoder.layers.*.layer_norm2",
    "v.blk.*.ffn_up": "encoder.layers.*.mlp.fc1",
    "v.blk.*.ffn_down": "encoder.layers.*.mlp.fc2",
    "v.post_ln": "post_layernorm",
}
_QWEN = {
    "v.patch_embd.weight": "patch_embed.proj.weight",
    "v.patch_embd.weight.1": "patch_embed.proj.weight",
    "v.blk.*.ln1": "blocks.*.norm1",
    "v.blk.*.attn_qkv": "blocks.*.attn.qkv",
    "v.blk.*.attn_q": "blocks.*.attn.qkv",
    "v.blk.*.attn_k": "blocks.*.attn.qkv",
    "v.blk.*.attn_v": "blocks.*.attn.qkv",
    "v.blk.*.attn_out": "blocks.*.attn.proj",
    "v.blk.*.ln2": "blocks.*.norm2",
}
_QWEN2_MERGER = {"v.post_ln": "merger.ln_q", "mm.0": "merger.mlp.0", "mm.2": "merger.mlp.2"}
QWEN2 = {
    **_QWEN,
    **_QWEN2_MERGER,
    "v.blk.*.ffn_up": "blocks.*.mlp.fc1",
    "v.blk.*.ffn_down": "blocks.*.mlp.fc2",
}
QWEN25 = {
    **_QWEN,
    **_QWEN2_MERGER,
    "v.blk.*.ffn_gate": "blocks.*.mlp.gate_proj",
    "v.blk.*.ffn_up": "blocks.*.mlp.up_proj",
    "v.blk.*.ffn_down": "blocks.*.mlp.down_proj",
}
QWEN3 = {
    **_QWEN,
    "v.patch_embd.bias": "patch_embed.proj.bias",
    "v.position_embd": "pos_embed",
    "v.blk.*.ffn_up": "blocks.*.mlp.linear_fc1",
    "v.blk.*.ffn_down": "blocks.*.mlp.linear_fc2",
    "v.post_ln": "merger.norm",
    "mm.0": "merger.linear_fc1",
    "mm.2": "merger.linear_fc2",
    "v.deepstack.*.norm": "deepstack_merger_list.*.norm",
    "v.deepstack.*.fc1": "deepstack_merger_list.*.linear_fc1",
    "v.deepstack.*.fc2": "deepstack_merger_list.*.linear_fc2",
}
PIXTRAL = {
    "v.patch_embd": "vision_tower.patch_conv",
    "v.pre_ln": "vision_tower.ln_pre",
    "v.blk.*.ln1": "vision_tower.transformer.layers.*.attention_norm",
    "v.blk.*.attn_q": "vision_tower.transformer.layers.*.attention.q_proj",
    "v.blk.*.attn_k": "vision_tower.transformer.layers.*.attention.k_proj",
    "v.blk.*.attn_v": "vision_tower.transformer.layers.*.attention.v_proj",
    "v.blk.*.attn_out": "vision_tower.transformer.layers.*.attention.o_proj",
    "v.blk.*.ln2": "vision_tower.transformer.layers.*.ffn_norm",
    "v.blk.*.ffn_gate": "vision_tower.transformer.layers.*.feed_forward.gate_proj",
    "v.blk.*.ffn_up": "vision_tower.transformer.layers.*.feed_forward.up_proj",
    "v.blk.*.ffn_down": "vision_tower.transformer.layers.*.feed_forward.down_proj",
    "mm.input_norm": "multi_modal_projector.norm",
    "mm.patch_merger": "multi_modal_projector.patch_merger.merging_layer",
    "mm.1": "multi_modal_projector.linear_1",
    "mm.2": "multi_modal_projector.linear_2",
}
GEMMA4_LINEARS = {
    **{f"v.blk.*.attn_{part}": f"encoder.layers.*.self_attn.{part}_proj" for part in "qkv"},
    "v.blk.*.attn_out": "encoder.layers.*.self_attn.o_proj",
    **{
        f"v.blk.*.ffn_{part}": f"encoder.layers.*.mlp.{part}_proj"
        for part in ("gate", "up", "down")
    },
}
BOUNDS = ("input_min", "input_max", "output_min", "output_max")
GEMMA4 = {
    "v.patch_embd": "patch_embedder.input_proj",
    "v.position_embd.weight": "patch_embedder.position_embedding_table",
    "v.blk.*.ln1": "encoder.layers.*.input_layernorm",
    "v.blk.*.ln2": "encoder.layers.*.pre_feedforward_layernorm",
    "v.blk.*.attn_post_norm": "encoder.layers.*.post_attention_layernorm",
    "v.blk.*.ffn_post_norm": "encoder.layers.*.post_feedforward_layernorm",
    "v.blk.*.attn_q_norm": "encoder.layers.*.self_attn.q_norm",
    "v.blk.*.attn_k_norm": "encoder.layers.*.self_attn.k_norm",
    **{own: f"{name}.linear" for own, name in GEMMA4_LINEARS.items()},
    **{
        f"{own}.{bound}": f"{name}.{bound}"
        for own, name in GEMMA4_LINEARS.items()
        for bound in BOUNDS
    },
    "v.std_bias": "std_bias",
    "v.std_scale": "std_scale",
}
INTERNVL = {
    "v.class_embd": "vision_tower.embeddings.cls_token",
    "v.position_embd.weight": "vision_tower.embeddings.position_embeddings",
    "v.patch_embd": "vision_tower.embeddings.patch_embeddings.projection",
    "v.blk.*.ls1.weight": "vision_tower.encoder.layer.*.lambda_1",
    "v.blk.*.ls2.weight": "vision_tower.encoder.layer.*.lambda_2",
    "v.blk.*.ln1": "vision_tower.encoder.layer.*.layernorm_before",
    "v.blk.*.ln2": "vision_tower.encoder.layer.*.layernorm_after",
    "v.blk.*.attn_q": "vision_tower.encoder.layer.*.attention.q_proj",
    "v.blk.*.attn_k": "vision_tower.encoder.layer.*.attention.k_proj",
    "v.blk.*.attn_v": "vision_tower.encoder.layer.*.attention.v_proj",
    "v.blk.*.attn_q_norm": "vision_tower.encoder.layer.*.attention.q_norm",
    "v.blk.*.attn_k_norm": "vision_tower.encoder.layer.*.attention.k_norm",
    "v.blk.*.attn_out": "vision_tower.encoder.layer.*.attention.projection_layer",
    "v.blk.*.ffn_up": "vision_tower.encoder.layer.*.mlp.fc1",
    "v.blk.*.ffn_down": "vision_tower.encoder.layer.*.mlp.fc2",
    "mm.model.mlp.0": "multi_modal_projector.layer_norm",
    "mm.model.mlp.1": "multi_modal_projector.linear_1",
    "mm.model.mlp.3": "multi_modal_projector.linear_2",
}
_LAYERS = {
    "a.blk.*.ln1": "layers.*.self_attn_layer_norm",
    "a.blk.*.attn_q": "layers.*.self_attn.q_proj",
    "a.blk.*.attn_k": "layers.*.self_attn.k_proj",
    "a.blk.*.attn_v": "layers.*.self_attn.v_proj",
    "a.blk.*.attn_out": "layers.*.self_attn.out_proj",
    "a.blk.*.ln2": "layers.*.final_layer_norm",
    "a.blk.*.ffn_up": "layers.*.fc1",
    "a.blk.*.ffn_down": "layers.*.fc2",
}
WHISPER = {
    **_LAYERS,
    "a.conv1d.1": "conv1",
    "a.conv1d.2": "conv2",
    "a.position_embd": "embed_positions",
    "a.post_ln": "layer_norm",
}
QWEN3_AUDIO = {
    **_LAYERS,
    **{f"a.conv2d.{i}": f"conv2d{i}" for i in (1, 2, 3)},
    "a.conv_out": "conv_out",
    "a.post_ln": "ln_post",
}
GEMMA4_AUDIO_LINEARS = {
    **{f"a.blk.*.attn_{part}": f"layers.*.self_attn.{part}_proj" for part in "qkv"},
    "a.blk.*.attn_out": "layers.*.self_attn.post",
    "a.blk.*.ffn_up": "layers.*.feed_forward1.ffw_layer_1",
    "a.blk.*.ffn_down": "layers.*.feed_forward1.ffw_layer_2",
    "a.blk.*.ffn_up_1": "layers.*.feed_forward2.ffw_layer_1",
    "a.blk.*.ffn_down_1": "layers.*.feed_forward2.ffw_layer_2",
    "a.blk.*.conv_pw1": "layers.*.lconv1d.linear_start",
    "a.blk.*.conv_pw2": "layers.*.lconv1d.linear_end",
}
GEMMA4_AUDIO = {
    **{f"a.conv1d.{i}": f"subsample_conv_projection.layer{i}.conv" for i in (0, 1)},
    **{f"a.conv1d.{i}.norm": f"subsample_conv_projection.layer{i}.norm" for i in (0, 1)},
    "a.input_projection": "subsample_conv_projection.input_proj_linear",
    **{own: f"{name}.linear" for own, name in GEMMA4_AUDIO_LINEARS.items()},
    **{
        f"{own}.{bound}": f"{name}.{bound}"
        for own, name in GEMMA4_AUDIO_LINEARS.items()
        for bound in BOUNDS
    },
    "a.blk.*.ffn_norm": "layers.*.feed_forward1.pre_layer_norm",
    "a.blk.*.ffn_post_norm": "layers.*.feed_forward1.post_layer_norm",
    "a.blk.*.ffn_norm_1": "layers.*.feed_forward2.pre_layer_norm",
    "a.blk.*.ffn_post_norm_1": "layers.*.feed_forward2.post_layer_norm",
    "a.blk.*.per_dim_scale.weight": "layers.*.self_attn.per_dim_scale",
    "a.blk.*.attn_k_rel": "layers.*.self_attn.relative_k_proj",
    "a.blk.*.attn_pre_norm": "layers.*.norm_pre_attn",
    "a.blk.*.attn_post_norm": "layers.*.norm_post_attn",
    "a.blk.*.conv_dw": "layers.*.lconv1d.depthwise_conv1d",
    "a.blk.*.conv_norm": "layers.*.lconv1d.pre_layer_norm",
    "a.blk.*.norm_conv": "layers.*.lconv1d.conv_norm",
    "a.blk.*.ln2": "layers.*.norm_out",
    "a.pre_encode.out": "output_proj",
}
