"""What a model's configuration says of its forward pass that its weights do not.

The same weights with GELU and with quick GELU, or cut into other heads, give different latents.
"""

import json
from typing import Any

from transformers import PreTrainedConfig

from alignvl_cli.encoders.trust import is_own_code

HOUSEKEEPING = {*PreTrainedConfig().to_dict(), "auto_map"}
"""What every configuration has, of no matter to the forward pass."""

DECISIVE = (
    # Activation functions.
    *("hidden_act", "hidden_activation", "activation", "activation_function", "ff_activation", "feed_forward_proj"),
    *("pooler_act", "pooler_hidden_act", "stem_act_func", "gelu_activation", "afn", "dense_act_fn"),
    # How a width is cut into heads.
    *("num_attention_heads", "num_key_value_heads", "num_heads", "n_heads", "n_head", "head_dim", "num_groups"),
    # Norms: what is added to the variance, and where they stand.
    *("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "norm_eps", "norm_epsilon", "batch_norm_eps"),
    *("do_layer_norm_before", "apply_residual_connection_post_layernorm", "use_post_layernorm", "normalize_modulator"),
    "use_parallel_residual",
    # Positions.
    *("rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor", "max_position_embeddings"),
    *("relative_attention", "pos_att_type", "position_buckets", "max_relative_positions", "position_biased_input"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "pad_token_id"),
    # Which tokens a token sees.
    *("is_causal", "is_decoder", "use_bidirectional_attention", "layer_types", "sliding_window", "local_attention"),
    *("global_attn_every_n_layers", "attention_window", "attention_chunk_size", "attention_types", "attention_type"),
    *("attn_type", "block_size", "num_random_blocks", "window_size", "pretrained_window_sizes"),
    # Scales and bounds of what passes through.
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "query_pre_attn_scalar", "attn_logit_softcapping"),
    *("embedding_multiplier", "residual_multiplier", "attention_multiplier", "clip_qkv", "rescale_embeddings"),
    # Layers run, also of weights that several share; the token whose vector CLIP pools.
    *("num_hidden_layers", "eos_token_id"),
    # How a picture is cut, and the steps of convolutions.
    *("image_size", "patch_size", "patch_stride", "patch_padding", "masked_unit_size", "masked_unit_attention"),
    *("num_query_pool", "query_stride", "strides", "stem_stride", "output_stride", "stride_q", "stride_kv"),
    *("conv_layer_strides", "kernel_size", "kernel_sizes", "dilations", "padding", "padding_q", "padding_kv"),
    *("depthwise_padding", "global_padding", "tf_padding", "embedding_dynamic_padding", "pool_size", "pooling_type"),
    *("use_mean_pooling", "layer_type", "down_ops", "down_stride", "down_pad", "downsample_in_bottleneck"),
    "downsample_in_first_stage",
)
"""Settings, by transformers' names, each taken where a model has it.

Covered are the families that a test lists (BERT, RoBERTa, MPNet, T5, ModernBERT, CLIP, SigLIP, ViT, DINO, Swin,
ConvNeXt, ResNet, EfficientNet, decoders such as Qwen and Llama, and more): it changes every setting of each, and holds
this list to all that move an output. Of other families a setting may be missing: those are told apart by class and
weights. Left out are settings of training, of heads that are not read, and all that shows in the weights, their number
and their shapes.
"""


def computation_record(config: Any) -> dict[str, Any]:
    """The settings of a resolved configuration that decide the forward pass: defaults filled in, however its file spelt
    them, and whichever version wrote it.

    A model of code of its own may read any setting: all of them are taken.
    """
    stated = json.loads(config.to_json_string(use_diff=False))
    names = stated.keys() - HOUSEKEEPING if is_own_code(config) else stated.keys() & set(DECISIVE)
    return {name: _plain(stated[name]) for name in sorted(names) if stated[name] is not None}


def _plain(value: Any) -> Any:
    """Whole numbers written one way: files have 10000 and 10000.0 for one setting."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
