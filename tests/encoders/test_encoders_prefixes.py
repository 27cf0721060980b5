"""A prefix is asked for or stated, never guessed, and it is part of the encoder."""

import numpy as np
import pytest
from support import tiny_models
from transformers import AutoConfig

from alignvl_cli.encoders.text import load_caption_reader, load_text, reload_text
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import Pooling, Precision

STATED = {"prompts": {"query": "q: ", "document": "p: "}}
EMPTY = {"prompts": {"query": "", "document": ""}, "default_prompt_name": None}
QUESTIONS = {"prompts": {"web_search_query": "Instruct: find. Query: "}, "default_prompt_name": None}


def load(folder, prefix=None):
    return load_text(str(folder), pooling=Pooling.mean, prefix=prefix, device="cpu", precision=Precision.fp32)


@pytest.mark.parametrize("prompts", [None, STATED])
def test_an_asked_prefix_beats_the_stated_one_and_is_read_with_every_text(tmp_path, prompts):
    folder = tiny_models.save_sentence_transformer(tmp_path / "m", prompts=prompts)
    asked, plain = load(folder, "a dog: "), load(folder, "")
    assert (asked.record["prefix"], plain.record["prefix"]) == ("a dog: ", "")
    np.testing.assert_allclose(asked.encode(["x", "y"]), plain.encode(["a dog: x", "a dog: y"]), rtol=0, atol=1e-6)
    assert load(folder).record["prefix"] == ("p: " if prompts else "")


@pytest.mark.parametrize("prefix", ["query: ", ""])
def test_a_reloaded_encoder_takes_the_recorded_prefix(tmp_path, prefix):
    """What the model's files state by then is of no matter: the latents were made with this one."""
    folder = tiny_models.save_sentence_transformer(tmp_path / "e5-small", prompts=STATED)
    encoder = load(folder, prefix)
    tiny_models.write_json(folder / "config_sentence_transformers.json", EMPTY)
    again = reload_text(encoder.record, encoder.about, "cpu", Precision.fp32)
    assert again.record == encoder.record
    np.testing.assert_array_equal(again.encode(["a dog"]), encoder.encode(["a dog"]))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("e5-base-v2", "'query: ' or 'passage: '"),
        ("multilingual-e5-small", "'query: ' or 'passage: '"),
        ("E5_large", "'query: ' or 'passage: '"),
        ("my-e5-small-finetuned", "'query: ' or 'passage: '"),
        ("models--intfloat--e5-base/snapshots/0123abc", "'query: ' or 'passage: '"),
        ("multilingual-e5-large-instruct", "an instruction before queries"),
        ("e5-mistral-7b-instruct", "an instruction before queries"),
        ("nomic-embed-text-v1.5", "'search_query: ' or 'search_document: '"),
    ],
)
@pytest.mark.parametrize("prompts", [None, EMPTY])
def test_a_model_known_to_want_a_prefix_asks_for_it(tmp_path, name, wanted, prompts):
    folder = tiny_models.save_sentence_transformer(tmp_path / name, prompts=prompts)
    with pytest.raises(UsageError, match=rf"trained with {wanted}.*--text-prefix 'query: '.*--text-prefix ''"):
        load(folder)
    with pytest.raises(UsageError, match="--text-prefix"):
        load_caption_reader(str(folder), prefix=None)
    assert load(folder, "").record["prefix"] == ""
    assert load(folder, "query: ").record["prefix"] == "query: "


def test_where_a_model_was_saved_from_tells_too(tmp_path):
    folder = tiny_models.save_bert(tmp_path / "mine")
    config = AutoConfig.from_pretrained(folder).to_dict()
    tiny_models.write_json(folder / "config.json", config | {"_name_or_path": "intfloat/e5-base"})
    with pytest.raises(UsageError, match=r"mine: by its name \(intfloat/e5-base\)"):
        load(folder)


@pytest.mark.parametrize(("prompts", "prefix"), [(STATED, "p: "), (QUESTIONS, "")])
def test_what_its_files_state_is_enough(tmp_path, prompts, prefix):
    folder = tiny_models.save_sentence_transformer(tmp_path / "e5-mistral-7b-instruct", prompts=prompts)
    assert load(folder).record["prefix"] == prefix


@pytest.mark.parametrize("name", ["bge-base-en-v1.5", "all-MiniLM-L6-v2", "gte-base", "code5-small", "me5-base", "e5"])
def test_other_models_need_none(tmp_path, name):
    assert load(tiny_models.save_sentence_transformer(tmp_path / name)).record["prefix"] == ""


def test_a_prefix_that_is_no_text_is_refused(tmp_path):
    folder = tiny_models.save_bert(tmp_path / "m")
    with pytest.raises(UsageError, match="--text-prefix: wanted text in UTF-8"):
        load(folder, "query\udcff")


def test_prompts_that_are_none_are_a_data_error(tmp_path):
    folder = tiny_models.save_sentence_transformer(tmp_path / "m", prompts={"prompts": ["query: "]})
    with pytest.raises(DataError, match="prompts should be a JSON object"):
        load(folder)


def test_a_prefix_that_pooling_leaves_out_asks(tmp_path):
    folder = tiny_models.save_sentence_transformer(tmp_path / "m", prompts=STATED)
    tiny_models.write_json(
        folder / "1_Pooling" / "config.json", tiny_models.pooling_flags("mean") | {"include_prompt": False}
    )
    settings = {"pooling": None, "device": "cpu", "precision": Precision.fp32}
    with pytest.raises(UsageError, match="leaves out the prompt"):
        load_text(str(folder), **settings)
    with pytest.raises(UsageError, match="leaves out the prompt"):
        load_text(str(folder), prefix="mine: ", **settings)
    assert load_text(str(folder), prefix="", **settings).record["pooling"] == "mean"


def test_a_caption_reader_reads_as_the_encoder_does_whatever_the_pooling(tmp_path):
    texts = ["ab", "", "a dog " * 9]
    for folder in (tiny_models.save_bert(tmp_path / "a"), tiny_models.save_sentence_transformer(tmp_path / "b")):
        reader, encoder = load_caption_reader(str(folder), prefix="p: "), load(folder, "p: ")
        assert reader.record == encoder.reader.record
        assert reader.lengths(texts) == encoder.lengths(texts)
