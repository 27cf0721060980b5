"""Each way to read a text model, against transformers' and sentence-transformers' own output."""

import json

import numpy as np
import pandas
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_models
from support.tiny_models import VOCABULARY, save_model, save_sentence_transformer, save_tokenizer, write_json
from tokenizers import processors

from alignvl_cli.encoders.text import MOST_TOKENS, load_text, parts_of, reload_text, text_list
from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.settings import Pooling, Precision

CAPTIONS = ["a dog", "x", "red heart: the suit of cards", "Zebra, not a horse.", "", "word " * 30]
BATCH_TOLERANCE = 1e-5
"""Largest difference, in units of the latents' standard deviation, that padding and neighbours may make (float32)."""

SAVERS = {
    "bert": tiny_models.save_bert,
    "clip": tiny_models.save_clip,
    "siglip": tiny_models.save_siglip,
    "t5": tiny_models.save_t5,
}
ABLE = {
    "bert": {Pooling.cls, Pooling.mean, Pooling.last, Pooling.pooler, Pooling.cls_mean},
    "clip": {Pooling.mean, Pooling.last, Pooling.pooler, Pooling.projection},
    "siglip": {Pooling.pooler},
    "t5": {Pooling.mean, Pooling.last},
}


def load(folder, pooling=None, precision=Precision.fp32):
    return load_text(str(folder), pooling=pooling, device="cpu", precision=precision)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    return {name: save(root / name) for name, save in SAVERS.items()}


def reference(folder, pooling, caption):
    """The vector of one caption, never padded, by transformers' documented classes alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    kind = model.config.model_type
    limit = {"bert": 40, "clip": 40, "siglip": 12, "t5": 512}[kind]
    padding = "max_length" if kind == "siglip" else False
    ids = tokenizer(caption, truncation=True, max_length=limit, padding=padding, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        tower = {"clip": "text_model", "siglip": "text_model", "t5": "encoder"}.get(kind)
        output = (getattr(model, tower) if tower else model)(input_ids=ids)
        hidden = output.last_hidden_state[0]
        vector = {
            Pooling.cls: lambda: hidden[0],
            Pooling.mean: lambda: hidden.mean(dim=0),
            Pooling.last: lambda: hidden[-1],
            Pooling.pooler: lambda: output.pooler_output[0],
            Pooling.cls_mean: lambda: torch.cat([hidden[0], hidden.mean(dim=0)]),
            Pooling.projection: lambda: model.text_projection(output.pooler_output)[0],
        }[pooling]()
    return vector.numpy()


CASES = [(name, pooling) for name, able in ABLE.items() for pooling in Pooling if pooling in able]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pooling"), CASES, ids=str)
def test_each_pooling_is_the_vector_it_names_whatever_the_padding(folders, name, pooling):
    encoder = load(folders[name], pooling)
    latent = encoder.encode(CAPTIONS)
    expected = np.stack([reference(folders[name], pooling, caption) for caption in CAPTIONS])
    assert latent.dtype == np.float32
    assert latent.shape == (len(CAPTIONS), encoder.width)
    assert pooling is Pooling.cls or expected.std(axis=0).max() > 1e-3  # captions differ
    np.testing.assert_allclose(latent, expected, rtol=0, atol=1e-5)
    assert encoder.record["pooling"] == pooling.value


@pytest.mark.parametrize("name", ABLE)
def test_what_a_model_cannot_give_is_refused_with_what_it_can(folders, name):
    for pooling in set(Pooling) - ABLE[name]:
        with pytest.raises(UsageError, match="cannot give --text-pooling") as refusal:
            load(folders[name], pooling)
        offered = set(str(refusal.value).rsplit("it can give: ", 1)[1].split(", "))
        assert offered == {able.value for able in ABLE[name]}


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_two_towers_are_read_by_their_pooler(folders, name):
    encoder = load(folders[name])
    assert (encoder.record["pooling"], encoder.about["pooling_source"]) == ("pooler", "table")
    assert not [name for name, _ in encoder.model.named_parameters() if "vision" in name]


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_without_module_files_a_text_model_asks(folders, name):
    with pytest.raises(UsageError, match=rf"model type {name}.*--text-pooling; it can give: .*mean"):
        load(folders[name])


@pytest.mark.parametrize(
    ("mode", "name"), [("mean", "mean"), ("cls", "cls"), ("lasttoken", "last"), (("cls", "mean"), "cls+mean")]
)
@pytest.mark.parametrize("lowercase", [False, True])
def test_module_files_decide_and_equal_sentence_transformers(tmp_path, mode, name, lowercase):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    prompts = {"prompts": {"query": "q: ", "document": "passage: "}, "default_prompt_name": None}
    folder = tiny_models.save_sentence_transformer(
        tmp_path / "m", pooling=mode, modules=(), prompts=prompts, lowercase=lowercase
    )
    encoder = load(folder)
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode_document(
        CAPTIONS, show_progress_bar=False
    )
    assert (encoder.record["pooling"], encoder.about["pooling_source"]) == (name, "modules")
    assert encoder.record["prefix"] == "passage: "
    assert encoder.record["lowercase"] is lowercase
    assert encoder.max_length == 20
    np.testing.assert_allclose(encoder.encode(CAPTIONS), expected, rtol=0, atol=1e-5)


def test_normalize_modules_are_read_over(tmp_path):
    with_norm = load(tiny_models.save_sentence_transformer(tmp_path / "a", modules=("Normalize",)))
    without = load(tiny_models.save_sentence_transformer(tmp_path / "b", modules=()))
    assert with_norm.record == without.record
    assert with_norm.record["normalize"] is False
    norms = np.linalg.norm(with_norm.encode(CAPTIONS), axis=1)
    assert (np.abs(norms - 1) > 0.01).all()


def test_module_files_without_a_pooling_leave_it_to_the_table(tmp_path):
    clip = tiny_models.save_clip(tmp_path / "m" / "0_CLIPModel")
    modules = [{"path": clip.name, "type": "sentence_transformers.models.CLIPModel"}]
    tiny_models.write_json(clip.parent / "modules.json", modules)
    encoder = load(clip.parent)
    assert (encoder.record["pooling"], encoder.about["pooling_source"]) == ("pooler", "table")


def test_flag_beats_module_files(tmp_path):
    encoder = load(tiny_models.save_sentence_transformer(tmp_path / "m", pooling="mean"), Pooling.cls)
    assert (encoder.record["pooling"], encoder.about["pooling_source"]) == ("cls", "asked")


def test_a_vector_that_alignvl_cannot_make_asks(tmp_path):
    dense = tiny_models.save_sentence_transformer(tmp_path / "dense", modules=("Dense", "Normalize"))
    with pytest.raises(UsageError, match=r"goes through Dense after pooling.*--text-pooling"):
        load(dense)
    assert load(dense, Pooling.mean).about["pooling_source"] == "asked"
    with pytest.raises(UsageError, match=r"asks? for max pooling.*--text-pooling"):
        load(tiny_models.save_sentence_transformer(tmp_path / "max", pooling="max"))


@pytest.mark.parametrize("name", ABLE)
def test_vectors_do_not_depend_on_the_batch(folders, name):
    encoder = load(folders[name], Pooling.mean if Pooling.mean in ABLE[name] else Pooling.pooler)
    together = encoder.encode(CAPTIONS)
    alone = np.concatenate([encoder.encode([caption]) for caption in CAPTIONS])
    assert np.abs(together - alone).max() < BATCH_TOLERANCE * together.std()
    assert np.abs(encoder.encode(CAPTIONS[::-1])[::-1] - together).max() < BATCH_TOLERANCE * together.std()


@pytest.mark.parametrize("name", ABLE)
@pytest.mark.parametrize("most", [1, 13, 40, 90])
def test_a_batch_in_parts_gives_the_same_vectors(folders, name, most, monkeypatch):
    encoder = load(folders[name], Pooling.mean if Pooling.mean in ABLE[name] else Pooling.pooler)
    together = encoder.encode(CAPTIONS)
    monkeypatch.setattr("alignvl_cli.encoders.text.MOST_TOKENS", most)
    sizes = []
    encoder.model.register_forward_pre_hook(
        lambda model, args, given: sizes.append(given["input_ids"].shape), with_kwargs=True
    )
    assert np.abs(encoder.encode(CAPTIONS) - together).max() < BATCH_TOLERANCE * together.std()
    assert sum(rows for rows, _ in sizes) == len(CAPTIONS)
    assert all(rows == 1 or rows * longest <= most for rows, longest in sizes)
    encoder.model._forward_pre_hooks.clear()


@given(lengths=st.lists(st.integers(1, 40_000), min_size=1, max_size=70))
def test_parts_hold_each_row_once_within_the_bound(lengths):
    parts = list(parts_of(lengths))
    assert sorted(row for rows, _ in parts for row in rows) == [*range(len(lengths))]
    for rows, longest in parts:
        assert longest == max(lengths[row] for row in rows)
        assert len(rows) == 1 or len(rows) * longest <= MOST_TOKENS
    if len(lengths) * max(lengths) <= MOST_TOKENS:
        assert [rows for rows, _ in parts] == [[*range(len(lengths))]], "as it stands: not a bit of a latent changes"


def test_a_text_too_long_for_memory_is_named(tmp_path, monkeypatch):
    encoder = load(tiny_models.save_bert(tmp_path / "m"), Pooling.mean)

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(encoder.model), "forward", full)
    with pytest.raises(DataError, match=r"'dog'... of 5 tokens does not fit in memory by itself.*max_seq_length"):
        encoder.encode(["dog"])
    with pytest.raises(torch.OutOfMemoryError):  # of a batch the caller says what to do
        encoder.encode(["dog", "cat"])


def test_a_text_alone_is_not_taken_for_its_letters_and_no_texts_are_no_rows(folders):
    encoder = load(folders["bert"], Pooling.mean)
    for take in (encoder.encode, encoder.lengths):
        with pytest.raises(UsageError, match=r"wants a list of texts: \['red'\]"):
            take("red")
    assert encoder.encode([]).shape == encoder.encode(iter(())).shape == (0, encoder.width)
    assert np.array_equal(encoder.encode(text for text in CAPTIONS), encoder.encode(CAPTIONS))


def test_lengths_count_tokens_before_the_cut(tmp_path):
    prompts = {"prompts": {"document": "p: "}}
    encoder = load(tiny_models.save_sentence_transformer(tmp_path / "m", prompts=prompts))
    assert encoder.lengths(["ab", "", "a" * 30]) == [2 + 2 + 2, 2 + 2, 2 + 2 + 30]  # [CLS] p : ... [SEP]
    assert encoder.lengths([]) == []
    batch = encoder.reader.batch(["ab", "a" * 30], "cpu")
    assert batch["attention_mask"].sum(dim=1).tolist() == [6, 20]


def test_a_text_of_no_tokens_has_a_vector(tmp_path):
    """Where the tokenizer adds no special token, an empty caption is nothing at all."""
    folder = tiny_models.save_bert(tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    encoder = load(folder, Pooling.mean)
    assert np.isfinite(encoder.encode(["", "a dog"])).all()
    assert encoder.lengths(["", "ab"]) == [0, 2]
    with pytest.raises(UsageError, match="cannot give --text-pooling cls"):
        load(folder, Pooling.cls)


@pytest.mark.parametrize("name", ["Roberta", "RobertaPreLayerNorm", "IBert", "MPNet"])
def test_positions_bound_the_length(tmp_path, name):
    config = getattr(transformers, f"{name}Config")(**tiny_models.TEXT | {"pad_token_id": 1})
    folder = tiny_models.save_model(tmp_path / "m", getattr(transformers, f"{name}Model"), config)
    tiny_models.save_tokenizer(folder)
    encoder = load(folder, Pooling.mean)
    assert encoder.max_length == 40 - 2  # its positions start after the padding id
    assert np.isfinite(encoder.encode(["a" * 100])).all()


def test_tokenizer_and_pooling_are_part_of_the_record(tmp_path):
    lower = load(tiny_models.save_bert(tmp_path / "a", lowercase=True), Pooling.mean)
    upper = load(tiny_models.save_bert(tmp_path / "b", lowercase=False), Pooling.mean)
    assert lower.record["weights"] == upper.record["weights"]
    assert lower.record["tokenizer"]["vocabulary"] == upper.record["tokenizer"]["vocabulary"]
    assert lower.record["tokenizer"]["behaviour"] != upper.record["tokenizer"]["behaviour"]


def test_reload_takes_the_recorded_pooling_and_refuses_another_tokenizer(tmp_path):
    folder = tiny_models.save_bert(tmp_path / "m")
    encoder = load(folder, Pooling.last)
    assert reload_text(encoder.record, encoder.about, "cpu", Precision.fp32).record == encoder.record
    tiny_models.save_tokenizer(folder, lowercase=False)
    with pytest.raises(MismatchError, match=r"tokenizer.behaviour: stored .*, loaded "):
        reload_text(encoder.record, encoder.about, "cpu", Precision.fp32)


def test_bfloat16_gives_float32_latents_nearby(folders):
    exact, rough = load(folders["bert"], Pooling.mean), load(folders["bert"], Pooling.mean, Precision.bf16)
    one, other = exact.encode(CAPTIONS), rough.encode(CAPTIONS)
    assert other.dtype == np.float32
    assert np.abs(one - other).max() > 0
    cosine = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosine.min() > 0.999


def test_a_decoder_that_needs_its_own_input_is_refused(tmp_path):
    config = transformers.BartConfig(vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1)
    folder = tiny_models.save_model(tmp_path / "bart", transformers.BartModel, config)
    tiny_models.save_tokenizer(folder)
    with pytest.raises(UsageError, match="has a decoder"):
        load(folder, Pooling.mean)


def test_a_vision_model_is_no_text_model(tmp_path):
    folder = tiny_models.save_vit(tmp_path / "m")
    tiny_models.save_tokenizer(folder)
    with pytest.raises(UsageError, match=r"ViTModel.* is not a text model"):
        load(folder)


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "config.json", "model.safetensors", "modules.json", "1_Pooling/config.json"]
)
def test_broken_files_are_data_errors(tmp_path, file):
    folder = tiny_models.save_sentence_transformer(tmp_path / "m")
    (folder / file).write_bytes(b'{"broken": ')
    with pytest.raises(DataError, match=str(folder)):
        load(folder)


@pytest.mark.parametrize("modules", [[], {}, ["Transformer"]])
def test_a_list_of_modules_that_is_none_is_a_data_error(tmp_path, modules):
    folder = tiny_models.save_sentence_transformer(tmp_path / "m")
    tiny_models.write_json(folder / "modules.json", modules)
    with pytest.raises(DataError, match="at least one JSON object"):
        load(folder)


def test_pooling_that_leaves_out_the_prompt_asks(tmp_path):
    prompts = {"prompts": {"document": "d: "}}
    folder = tiny_models.save_sentence_transformer(tmp_path / "m", prompts=prompts)
    settings = tiny_models.pooling_flags("mean") | {"include_prompt": False}
    tiny_models.write_json(folder / "1_Pooling" / "config.json", settings)
    with pytest.raises(UsageError, match="leaves out the prompt"):
        load(folder)
    tiny_models.write_json(folder / "config_sentence_transformers.json", {"prompts": {}})
    assert load(folder).record["prefix"] == ""


def test_the_newer_spelling_of_pooling_and_a_default_prompt(tmp_path):
    prompts = {"prompts": {"query": "q: ", "sts": "s: "}, "default_prompt_name": "sts"}
    folder = tiny_models.save_sentence_transformer(tmp_path / "m", prompts=prompts)
    tiny_models.write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "lasttoken"})
    encoder = load(folder)
    assert (encoder.record["pooling"], encoder.record["prefix"]) == ("last", "s: ")


def clip_ending_with(folder, end, **other):
    tiny_models.save_clip(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"eos_token_id": end} | other
    tiny_models.write_json(folder / "config.json", config)
    return folder


@pytest.mark.parametrize("pooling", [Pooling.pooler, Pooling.projection])
@pytest.mark.parametrize("end", [2, 58])
def test_a_clip_that_would_not_find_the_end_of_a_caption_is_refused(tmp_path, end, pooling):
    """It would read the first token, which is the same for every caption; 2 stands for the highest id."""
    folder = clip_ending_with(tmp_path / "m", end)
    with pytest.raises(DataError, match=rf"captions end with token {end}, .* ends them with 3: .*eos_token_id"):
        load(folder, pooling)
    latent = load(folder, Pooling.last).encode(["a dog", "a cat"])
    assert np.abs(latent[0] - latent[1]).max() > 1e-3


def test_a_clip_of_old_files_is_read_at_its_highest_token(tmp_path):
    folder = clip_ending_with(tmp_path / "m", 2, vocab_size=61)
    config = transformers.CLIPConfig.from_pretrained(folder)
    tiny_models.save_model(folder, transformers.CLIPModel, config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.add_special_tokens(["[END]"])
    end = tokenizer.convert_tokens_to_ids("[END]")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [END]", special_tokens=[("[CLS]", 2), ("[END]", end)]
    )
    tokenizer.save_pretrained(folder)
    pooled, last = load(folder).encode(CAPTIONS), load(folder, Pooling.last).encode(CAPTIONS)
    np.testing.assert_allclose(pooled, last, rtol=0, atol=1e-5)


def test_metaclips_end_is_2_and_no_relic(tmp_path):
    text = tiny_models.TEXT | {"eos_token_id": 2}
    config = transformers.MetaClip2Config(vision_config=tiny_models.VISION, text_config=text)
    folder = tiny_models.save_model(tmp_path / "m", transformers.MetaClip2Model, config)
    tiny_models.save_tokenizer(folder, class_token=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[SEP] $A [CLS]", special_tokens=[("[SEP]", 3), ("[CLS]", 2)]
    )
    tokenizer.save_pretrained(folder)
    pooled, last = load(folder).encode(CAPTIONS), load(folder, Pooling.last).encode(CAPTIONS)
    np.testing.assert_allclose(pooled, last, rtol=0, atol=1e-5)


def test_captions_of_siglip_2_are_lower_cased(tmp_path):
    """Its folders name Gemma's tokenizer, which keeps the case that the model was not trained on."""
    folder = tiny_models.save_siglip(tmp_path / "m")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", *tiny_models.LETTERS, *"ABCDEFGHIJ", "▁"]
    transformers.GemmaTokenizer(vocab={letter: row for row, letter in enumerate(letters)}, merges=[]).save_pretrained(
        folder
    )
    encoder = load(folder)
    assert encoder.record["lowercase"] is True
    upper, lower, other = encoder.encode(["A DOG", "a dog", "a cat"])
    np.testing.assert_allclose(upper, lower, rtol=0, atol=1e-6)
    assert np.abs(lower - other).max() > 1e-3
    bert = tiny_models.save_bert(tmp_path / "bert")
    assert load(bert, Pooling.mean).record["lowercase"] is False


def test_siglip_is_read_at_its_last_place_whatever_length_is_stated(tmp_path):
    folder = tiny_models.save_siglip(tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 7
    tokenizer.save_pretrained(folder)
    assert load(folder).max_length == 12
    assert load(folder).reader.batch(["a"], "cpu")["input_ids"].shape == (1, 12)


def test_padding_on_the_left_is_the_tokenizers_own_affair(tmp_path):
    """The last token of a decoder, as transformers reads it where padding stands in front."""
    config = transformers.Qwen2Config(**tiny_models.TEXT, num_key_value_heads=1)
    folder = tiny_models.save_model(tmp_path / "m", transformers.Qwen2Model, config)
    tiny_models.save_tokenizer(folder, class_token=False)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    sides = {"padding_side": "left", "truncation_side": "left"}
    tiny_models.write_json(folder / "tokenizer_config.json", settings | sides)
    tokenizer, model = (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoModel.from_pretrained(folder),
    )
    batch = tokenizer(CAPTIONS[:4], padding=True, return_tensors="pt")
    assert batch["attention_mask"][:, 0].min() == 0
    with torch.inference_mode():
        output = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    np.testing.assert_allclose(
        load(folder, Pooling.last).encode(CAPTIONS[:4]), output.last_hidden_state[:, -1], rtol=0, atol=1e-5
    )


def test_a_tokenizer_that_lacks_its_library_says_which(tmp_path):
    if transformers.utils.is_sentencepiece_available():
        pytest.skip("sentencepiece is here")
    folder = tiny_models.save_siglip(tmp_path / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    tiny_models.write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "SiglipTokenizer"})
    with pytest.raises(DataError, match="pip install sentencepiece"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("sentence_bert_config.json", {"max_seq_length": -1}),
        ("sentence_bert_config.json", {"max_seq_length": "20"}),
        ("1_Pooling/config.json", {"pooling_mode": None}),
        ("1_Pooling/config.json", {"pooling_mode": [1]}),
        ("modules.json", [{"path": 3, "type": "Transformer"}]),
        ("config.json", {"model_type": "bert", "hidden_size": "wide"}),
    ],
    ids=str,
)
def test_settings_of_another_type_are_data_errors(tmp_path, file, settings):
    folder = tiny_models.save_sentence_transformer(tmp_path / "m")
    tiny_models.write_json(folder / file, settings)
    with pytest.raises(DataError, match=str(folder)):
        load(folder)


def test_settings_that_change_nothing_are_no_reason_to_refuse(tmp_path):
    save_sentence_transformer(tmp_path / "m", prompts={"document": ""})
    plain = load_text(str(tmp_path / "m"), pooling=None, device="cpu", precision=Precision.fp32)
    write_json(
        tmp_path / "m" / "sentence_bert_config.json",
        {
            "max_seq_length": plain.max_length,
            "do_lower_case": False,
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
            "model_args": {"torch_dtype": "float32", "attn_implementation": "eager"},
            "config_args": {"trust_remote_code": True},
            "tokenizer_args": {},
            "processing_kwargs": {"image": {"do_resize": True}},
        },
    )
    again = load_text(str(tmp_path / "m"), pooling=None, device="cpu", precision=Precision.fp32)
    assert again.record == plain.record


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("You need to install fugashi to use MecabTokenizer.", "pip install fugashi ipadic unidic-lite"),
        ("requires the SentencePiece library", "pip install sentencepiece protobuf"),
        ("You need to install rhoknp to use JumanppTokenizer.", "pip install rhoknp"),
        ("You need to install somewhat.", "install the library named there"),
    ],
)
def test_a_tokenizer_without_its_library_says_which_to_install(tmp_path, monkeypatch, said, advice):
    folder = tiny_models.save_bert(tmp_path / "m")

    def without(*path, **options):
        raise ModuleNotFoundError(said)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", without)
    with pytest.raises(DataError, match=f"{said}.*{advice}"):
        load(folder, Pooling.mean)


@pytest.mark.parametrize("kind", ["FNet", "ConvBert"])
def test_a_model_that_reads_its_padding_is_refused(tmp_path, kind):
    sizes = {"vocab_size": len(VOCABULARY), "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    more = {} if kind == "FNet" else {"num_attention_heads": 2, "embedding_size": 24}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more)
    save_model(tmp_path / "model", getattr(transformers, f"{kind}Model"), config)
    save_tokenizer(tmp_path / "model")
    with pytest.raises(UsageError, match="reads the padding of a batch"):
        load_text(str(tmp_path / "model"), pooling=Pooling.mean, device="cpu", precision=Precision.fp32)


def test_what_is_no_list_of_texts_is_refused():
    frame = pandas.DataFrame({"caption": ["a", "b"]})
    for texts in (frame, None, np.array("red"), ["a\ud83d"], ["caf\udce9"]):
        with pytest.raises(UsageError, match="encode_text"):
            text_list(texts, "encode_text")
    assert text_list(frame["caption"], "encode_text") == ["a", "b"]
