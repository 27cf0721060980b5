"""A tiny model of every family that is covered, by its `model_type`, and how it is built and saved."""

import copy
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

from support import tiny_models

DECODER = tiny_models.TEXT | {"num_key_value_heads": 1, "head_dim": 12, "sliding_window": 4}
STAGES = {"hidden_sizes": [8, 12], "depths": [1, 1]}
WINDOWS = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
T5 = {"vocab_size": 60, "d_model": 24, "d_kv": 12, "d_ff": 40, "num_layers": 2, "num_heads": 2}
FAMILIES = {
    "bert": tiny_models.TEXT,
    "roberta": tiny_models.TEXT,
    "xlm-roberta": tiny_models.TEXT,
    "mpnet": tiny_models.TEXT,
    "distilbert": {"vocab_size": 60, "dim": 24, "n_heads": 2, "n_layers": 2, "hidden_dim": 40},
    "albert": tiny_models.TEXT | {"embedding_size": 24},
    "deberta-v2": tiny_models.TEXT | {"relative_attention": True, "pos_att_type": ["c2p"], "position_buckets": 8},
    "modernbert": tiny_models.TEXT | {"local_attention": 4, "global_attn_every_n_layers": 2},
    "nomic_bert": DECODER,
    "t5": T5,
    "mt5": T5,
    "gpt2": {"n_embd": 24, "n_head": 2, "n_layer": 2, "vocab_size": 60, "n_positions": 40},
    "qwen2": DECODER | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": DECODER | {"use_sliding_window": True, "max_window_layers": 1},
    "mistral": DECODER,
    "llama": DECODER,
    "gemma2": DECODER,
    "gemma3_text": DECODER,
    "granite": DECODER,
    "clip_text_model": tiny_models.TEXT,
    "clip_vision_model": tiny_models.VISION,
    "siglip_vision_model": tiny_models.VISION,
    "vit": tiny_models.VISION,
    "deit": tiny_models.VISION,
    "dinov2": tiny_models.VISION | {"mlp_ratio": 2},
    "dinov2_with_registers": tiny_models.VISION | {"mlp_ratio": 2},
    "dinov3_vit": tiny_models.VISION | {"num_register_tokens": 2},
    "beit": tiny_models.VISION | {"use_relative_position_bias": True},
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "convnext": STAGES | {"num_stages": 2},
    "convnextv2": STAGES | {"num_stages": 2},
    "resnet": STAGES | {"embedding_size": 8, "layer_type": "bottleneck"},
    "regnet": STAGES | {"embedding_size": 8, "groups_width": 4},
    "efficientnet": {"image_size": 32, "width_coefficient": 0.3, "depth_coefficient": 0.2, "hidden_dim": 384},
}
"""Model types that are covered, each with the settings of a tiny one."""


def built(name, settings):
    """The model of a family, of a text model with a decoder the encoder alone; random weights."""
    config = AutoConfig.for_model(name, **copy.deepcopy(settings))
    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return MODEL_FOR_TEXT_ENCODING_MAPPING[type(config)](config).eval()
    return AutoModel.from_config(config).eval()


def save_family(folder, name, settings=None):
    """A model folder with weights, and an image processor or a tokenizer. Equal arguments give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = built(name, settings or FAMILIES[name])
        for tensor in model.parameters():
            torch.nn.init.normal_(tensor, std=0.2)
        model.save_pretrained(folder)
    if model.main_input_name == "pixel_values":
        size = {"height": tiny_models.IMAGE_SIZE, "width": tiny_models.IMAGE_SIZE}
        transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)
    else:
        tiny_models.save_tokenizer(folder)
    return Path(folder)
