"""Tiny transformers models with random weights, saved as ordinary local folders: every path of a real model, offline.

Each function fills `folder` and returns it. Equal arguments give equal weights; the global random state is untouched.
"""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

IMAGE_SIZE, PATCH = 32, 8
WIDTH, TEXT_WIDTH, PROJECTED = 32, 24, 16
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
}
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), ":", "."]
TEXT = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def save_model(folder, model_class, config, seed=0):
    """Random weights for `config` as safetensors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        for tensor in model.parameters():  # as spread out as trained weights: vectors then differ between inputs
            torch.nn.init.normal_(tensor, std=0.2)
        model.save_pretrained(folder)
    return Path(folder)


def save_tokenizer(folder, lowercase=True, class_token=True):
    """One token a letter; with BERT's special tokens, or with a start and an end as CLIP has."""
    tokenizer = Tokenizer(models.WordPiece({token: row for row, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = (
        {"cls_token": "[CLS]", "sep_token": "[SEP]"} if class_token else {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=10**30, **special
    )
    wrapped.save_pretrained(folder)


def save_dinov2(folder, seed=0):
    """A class token and 16 patches; resize and centre crop."""
    save_model(folder, transformers.Dinov2Model, transformers.Dinov2Config(**VISION, mlp_ratio=2), seed)
    transformers.BitImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    ).save_pretrained(folder)
    return Path(folder)


def save_vit(folder, pooler=True, seed=0):
    """As Google's: with or without weights for its pooler."""
    config = transformers.ViTConfig(**VISION)
    if pooler:
        save_model(folder, transformers.ViTModel, config, seed)
    else:
        save_model(folder, transformers.ViTForImageClassification, config, seed)
    transformers.ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)
    return Path(folder)


def save_resnet(folder, seed=0):
    """A convolutional net: its hidden state is a feature map."""
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, WIDTH], depths=[1, 1], layer_type="basic")
    save_model(folder, transformers.ResNetModel, config, seed)
    transformers.ConvNextImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}).save_pretrained(folder)
    return Path(folder)


def save_clip(folder, seed=0):
    """Both towers and their projections, in one folder."""
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=PROJECTED)
    save_model(folder, transformers.CLIPModel, config, seed)
    return _clip_files(folder)


def save_clip_vision(folder, seed=0):
    """The vision tower of a CLIP alone."""
    config = transformers.CLIPVisionConfig(**VISION, projection_dim=PROJECTED)
    save_model(folder, transformers.CLIPVisionModelWithProjection, config, seed)
    return _clip_files(folder)


def _clip_files(folder):
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    ).save_pretrained(folder)
    save_tokenizer(folder, class_token=False)
    return Path(folder)


def save_siglip(folder, seed=0):
    """Both towers; no class token, poolers only."""
    text = TEXT | {"max_position_embeddings": 12, "projection_size": TEXT_WIDTH}
    config = transformers.SiglipConfig(vision_config=VISION, text_config=text)
    save_model(folder, transformers.SiglipModel, config, seed)
    transformers.SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)
    save_tokenizer(folder, class_token=False)
    return Path(folder)


def save_bert(folder, lowercase=True, seed=0):
    """A text model that nothing says how to read."""
    save_model(folder, transformers.BertModel, transformers.BertConfig(**TEXT), seed)
    save_tokenizer(folder, lowercase)
    return Path(folder)


def save_t5(folder, seed=0):
    """An encoder-decoder whose encoder alone can be used; no class token."""
    config = transformers.T5Config(
        vocab_size=len(VOCABULARY), d_model=TEXT_WIDTH, d_kv=12, d_ff=40, num_layers=2, num_heads=2
    )
    save_model(folder, transformers.T5ForConditionalGeneration, config, seed)
    save_tokenizer(folder, class_token=False)
    return Path(folder)


def save_sentence_transformer(folder, pooling="mean", modules=("Normalize",), prompts=None, lowercase=False, seed=0):
    """BERT with sentence-transformers' module files. `pooling` is a mode, or several in a tuple."""
    folder = save_bert(folder, lowercase=not lowercase, seed=seed)
    kinds = ["Transformer", "Pooling", *modules]
    paths = ["", *(f"{row}_{kind}" for row, kind in enumerate(kinds) if row)]
    lines = [
        {"idx": row, "name": str(row), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for row, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(folder / "modules.json", lines)
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": TEXT_WIDTH} | pooling_flags(pooling))
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": lowercase})
    if prompts is not None:
        write_json(folder / "config_sentence_transformers.json", prompts)
    return folder


def pooling_flags(pooling):
    """The older spelling of a pooling module, which most models on the Hub have."""
    names = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
    asked = (pooling,) if isinstance(pooling, str) else pooling
    return {f"pooling_mode_{name}": mode in asked for mode, name in names.items()}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
