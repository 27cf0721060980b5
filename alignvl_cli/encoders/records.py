"""The record of an encoder: what decides a latent, as hashes and settings that are the same on every machine.

Of a model's configuration it has what the weights do not tell: the same ones with GELU and with quick GELU, or cut into
other heads, give different latents.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from alignvl_cli.artifacts import canonical_json, fingerprint, library_versions
from alignvl_cli.encoders.folders import is_own_code
from alignvl_cli.errors import MismatchError
from alignvl_cli.settings import Trust

VERSIONS = ("torch", "transformers", "tokenizers", "pillow", "numpy")
"""Libraries between a file and its latent."""

PROBE_TEXTS = (
    "A photo of two Dogs, running!",
    "Ünïcödé façade naïve Straße ﬁne",
    "日本語 русский العربية हिन्दी",
    "❤️ 👩‍🚀 café\tspaces   and\nlines",
    "it's 3.14 - e-mail@example.org #tag",
    "a" * 300,
)
"""Captions that tell tokenizers apart: case, accents, scripts, emoji, white space, punctuation, long words."""


def weights_sha256(model: nn.Module, unused: Collection[str] = ()) -> str:
    """Hex SHA-256 over the floating-point tensors of `model` but the `unused`: shapes, types and bytes, as a set.

    Names are left out, since transformers renames modules from one version to the next while files and latents stay;
    so are counters and position tables (integers), which come and go. One file or many shards: the same hash.
    """
    used = (tensor for name, tensor in model.state_dict().items() if name not in unused and tensor.is_floating_point())
    return fingerprint(sorted(_tensor_sha256(tensor) for tensor in used))


def _tensor_sha256(tensor: Tensor) -> str:
    """Of one tensor, without a copy where it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}\n".encode())
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_record(tokenizer: Any) -> dict[str, str]:
    """What a tokenizer does, whatever its file format: its vocabulary, and the ids it gives to probe captions."""
    ids = [tokenizer(text, truncation=False)["input_ids"] for text in PROBE_TEXTS]
    return {"vocabulary": fingerprint(sorted(tokenizer.get_vocab().items())), "behaviour": fingerprint(ids)}


def about(
    model_id: str, commit: str | None, precision: str, device: str, pooling_source: str, trust: Trust
) -> dict[str, Any]:
    """What is recorded beside an encoder and only warned about."""
    versions = library_versions()
    return {
        "id": model_id,
        "commit": commit,
        "precision": precision,
        "device": device,
        "versions": {package: versions[package] for package in VERSIONS if package in versions},
        "pooling_source": pooling_source,
        "trust_remote_code": trust.remote_code,
        "allow_pickle": trust.pickle,
    }


def require_known(record: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """MismatchError for a record that names an encoder and not how it was used, as that of imported latents does."""
    if record.get("imported") or "pooling" not in record or not {"id", "commit"} <= about.keys():
        raise MismatchError(
            f"these latents were imported, said to be of {about.get('id')}: nothing tells how that model was used, so"
            " nothing new can be encoded to fit them; make the store with `alignvl extract` to search it"
        )


def require_same(spec: str, stored: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    """MismatchError that names each setting in which a reloaded encoder differs from its stored record."""
    before, now = dict(_flat(stored)), dict(_flat(fresh))
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if "config" not in stored:  # recorded by an earlier version
        others = [key for key in keys if not key.startswith("config.")]
        if keys and not others:
            raise MismatchError(
                f"{spec}: the same weights, but nothing tells whether they are run as for these latents: an earlier "
                "alignvl recorded nothing of the model's configuration (activation function, heads, norms); run "
                "`alignvl extract` and `alignvl train` again"
            )
        keys = others
    if keys:
        sides = "; ".join(f"{key}: stored {_short(before.get(key))}, loaded {_short(now.get(key))}" for key in keys)
        raise MismatchError(
            f"{spec} is no longer the encoder that these latents came from ({sides}); "
            "bring that model back, or run `alignvl extract` again"
        )


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each setting of a record; those of a configuration, an image processor or a tokenizer by dotted name."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


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
