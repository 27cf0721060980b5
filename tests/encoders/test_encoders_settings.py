"""Every setting of a sentence-transformers folder gives that library's own vectors, or is refused by name."""

import json
import shutil

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tiny_models

from alignvl_cli.encoders import text as text_room
from alignvl_cli.encoders.text import load_text
from alignvl_cli.errors import AlignvlError, DataError, UsageError
from alignvl_cli.settings import Pooling, Precision

CAPTIONS = ["a dog", "Zebra, not a horse.", "", "word " * 30, "ΟΔΟΣ of A"]
TRANSFORMER, POOLING = "sentence_bert_config.json", "1_Pooling/config.json"
LIBRARY, MODULES = "config_sentence_transformers.json", "modules.json"
BASE = {
    TRANSFORMER: {"max_seq_length": 20, "do_lower_case": False},
    POOLING: {"word_embedding_dimension": tiny_models.TEXT_WIDTH, "pooling_mode": "mean"},
    LIBRARY: {"prompts": {"document": "d: "}},
}


def load(folder, pooling=None):
    return load_text(str(folder), pooling=pooling, device="cpu", precision=Precision.fp32)


def write(folder, file, changes):
    tiny_models.write_json(folder / file, BASE[file] | changes)


def require_equal(folder, method="encode_document"):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    expected = np.stack([getattr(model, method)([text], show_progress_bar=False)[0] for text in CAPTIONS])
    np.testing.assert_allclose(load(folder).encode(CAPTIONS), expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tiny_models.save_sentence_transformer(tmp_path_factory.mktemp("settings") / "bert", modules=())
    for file in BASE:
        write(folder, file, {})
    return folder


@pytest.fixture
def folder(bert, tmp_path):
    return shutil.copytree(bert, tmp_path / "m")


APPLIED = [
    (TRANSFORMER, {"max_seq_length": 7}),
    (TRANSFORMER, {"do_lower_case": True}),
    (TRANSFORMER, {"model_args": {"attn_implementation": "eager"}}),
    (TRANSFORMER, {"transformer_task": "feature-extraction", "unpad_inputs": False}),
    (TRANSFORMER, {"processing_kwargs": {"image": {"do_resize": False}}}),
    (POOLING, {"pooling_mode": "cls"}),
    (POOLING, {"pooling_mode": ["cls", "mean"]}),
    (POOLING, {"pooling_mode_cls_token": None, "pooling_mode_mean_tokens": True}),
    (TRANSFORMER, {"do_lower_case": None, "max_seq_length": None}),
    (LIBRARY, {"prompts": {"document": "a: ", "passage": "p: "}, "default_prompt_name": "passage"}),
    (LIBRARY, {"similarity_fn_name": "dot", "model_type": "SentenceTransformer"}),
]


@pytest.mark.parametrize(("file", "changes"), APPLIED, ids=str)
def test_an_applied_setting_gives_the_vectors_of_sentence_transformers(folder, file, changes):
    write(folder, file, changes)
    require_equal(folder)


REFUSED = [
    (TRANSFORMER, {"transformer_task": "fill-mask"}, "transformer_task"),
    (TRANSFORMER, {"processing_kwargs": {"text": {"max_length": 5}}}, "processing_kwargs.text"),
    (TRANSFORMER, {"processing_kwargs": {"text": {"add_special_tokens": False}}}, "processing_kwargs.text"),
    (TRANSFORMER, {"processing_kwargs": {"common": {"padding": "max_length"}}}, "processing_kwargs.common"),
    (TRANSFORMER, {"tokenizer_args": {"never_split": ["a"]}}, "tokenizer_args.never_split"),
    (TRANSFORMER, {"config_args": {"chunk_size_feed_forward": 3}}, "config_args.chunk_size_feed_forward"),
    (TRANSFORMER, {"tokenizer_args": {"model_max_length": 9}}, "tokenizer_args.model_max_length"),
    (TRANSFORMER, {"processor_kwargs": {"truncation_side": "left"}}, "processor_kwargs.truncation_side"),
    (TRANSFORMER, {"config_kwargs": {"is_decoder": True}}, "config_kwargs.is_decoder"),
    (TRANSFORMER, {"tokenizer_name_or_path": "another"}, "tokenizer_name_or_path"),
    (TRANSFORMER, {"model_args": {"default_task": "x"}}, "model_args.default_task"),
    (TRANSFORMER, {"model_args": {"num_labels": 3}}, "model_args.num_labels"),
    (TRANSFORMER, {"config_args": {"use_bidirectional_attention": True}}, "config_args.use_bidirectional_attention"),
    (TRANSFORMER, {"module_output_name": "sentence_embedding"}, "module_output_name"),
    (TRANSFORMER, {"document_length": 5}, "document_length"),
    (TRANSFORMER, {"query_expansion": {"length": 8}}, "query_expansion"),
    (TRANSFORMER, {"a_key_of_tomorrow": 1}, "a_key_of_tomorrow"),
    (TRANSFORMER, {"modality_config": {"message": {"method": "forward"}}}, "modality_config"),
    (TRANSFORMER, {"max_seq_length": True}, "max_seq_length"),
    (TRANSFORMER, {"max_seq_length": [20]}, "max_seq_length"),
    (TRANSFORMER, {"do_lower_case": "false"}, "do_lower_case"),
    (TRANSFORMER, {"config_args": ["is_causal"]}, "config_args"),
    (POOLING, {"layers": [1, 2]}, "layers"),
    (POOLING, {"pooling_mode_cls_token": "false"}, "pooling_mode_cls_token"),
    (POOLING, {"include_prompt": "no"}, "include_prompt"),
    (LIBRARY, {"truncate_dim": 8}, "truncate_dim"),
    (LIBRARY, {"model_type": "SparseEncoder"}, "model_type"),
    (LIBRARY, {"prompts": {"document": 3}}, "document"),
    (LIBRARY, {"default_prompt_name": "absent", "prompts": {}}, "default_prompt_name"),
    (LIBRARY, {"prompts": {"passage": "p: "}}, "--text-prefix 'p: '"),
]


@pytest.mark.parametrize(("file", "changes", "named"), REFUSED, ids=str)
def test_what_is_not_applied_is_refused_by_name(folder, file, changes, named):
    write(folder, file, changes)
    for pooling in (None, Pooling.mean):
        with pytest.raises((DataError, UsageError), match=named):
            load(folder, pooling)


@pytest.mark.parametrize("off", [False, None])
def test_null_is_off_where_a_missing_switch_is_on(folder, off):
    write(folder, POOLING, {"include_prompt": off})
    with pytest.raises(UsageError, match="its pooling leaves out the prompt"):
        load(folder)
    write(folder, LIBRARY, {"prompts": {}})
    require_equal(folder)


def test_a_prompt_for_passages_is_asked_for_and_the_advice_helps(folder):
    write(folder, LIBRARY, {"prompts": {"passage": "p: "}})
    assert (
        load_text(str(folder), pooling=None, prefix="p: ", device="cpu", precision=Precision.fp32).record["prefix"]
        == "p: "
    )
    write(folder, LIBRARY, {"prompts": {"sts": "s: ", "passage": "p: "}, "default_prompt_name": "sts"})
    require_equal(folder, "encode")


VALUES = st.sampled_from([None, True, False, 0, 1, 7, -1, 3.5, "", "mean", "left", "7", [], ["a"], {}, {"text": {}}])
KEYS = {
    TRANSFORMER: [
        "max_seq_length",
        "do_lower_case",
        "transformer_task",
        "processing_kwargs",
        "query_length",
        "strange",
    ],
    POOLING: ["pooling_mode", "include_prompt", "pooling_mode_max_tokens", "embedding_dimension", "strange"],
    LIBRARY: ["prompts", "default_prompt_name", "truncate_dim", "similarity_fn_name", "requirements"],
}
ARGUMENTS = st.dictionaries(
    st.sampled_from(["hidden_act", "is_decoder", "layer_norm_eps", "truncation_side", "model_max_length", "strange"]),
    st.sampled_from(["relu", True, 0.5, "left", 6, "6"]),
    max_size=2,
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_settings_are_equal_or_refused(bert, tmp_path, data):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = shutil.copytree(bert, tmp_path / "m", dirs_exist_ok=True)
    file = data.draw(st.sampled_from(sorted(KEYS)))
    changes = data.draw(st.dictionaries(st.sampled_from(KEYS[file]), VALUES, max_size=2))
    if file == TRANSFORMER:
        names = st.sampled_from(["config_args", "tokenizer_args", "model_kwargs"])
        changes |= data.draw(st.dictionaries(names, ARGUMENTS, max_size=1))
    for other in BASE:
        write(folder, other, changes if other == file else {})
    try:
        load(folder)
    except AlignvlError:
        return
    try:
        sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    except (ValueError, TypeError, LookupError, AttributeError, ImportError):  # nothing to compare with
        return
    require_equal(folder)


FIRST = [
    "custom_st.Transformer",
    *(f"sentence_transformers.models.{name}" for name in ("BoW", "StaticEmbedding", "Router")),
]


@pytest.mark.parametrize("kind", [*FIRST, "Transformer", ""])
def test_a_first_module_of_its_own_is_refused(folder, kind):
    modules = json.loads((folder / MODULES).read_text())
    modules[0]["type"] = kind
    tiny_models.write_json(folder / MODULES, modules)
    with pytest.raises(DataError, match=rf"module.*{kind.rpartition('.')[2]}.*store import"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"type": "custom_st.Pooling"}, r"custom_st\.Pooling.*own code"), ({"kwargs": ["task"]}, "kwargs")],
)
def test_other_modules_are_held_to_their_names_too(folder, change, named):
    modules = json.loads((folder / MODULES).read_text())
    modules[1] |= change
    tiny_models.write_json(folder / MODULES, modules)
    with pytest.raises(DataError, match=named):
        load(folder)


@pytest.mark.parametrize("stated", [10, 30])
def test_the_length_of_the_module_files_counts_whatever_the_tokenizers(folder, stated):
    there = json.loads((folder / "tokenizer_config.json").read_text())
    tiny_models.write_json(folder / "tokenizer_config.json", there | {"model_max_length": stated})
    require_equal(folder)


@pytest.mark.parametrize("side", ["left", "right"])
def test_long_captions_are_cut_where_the_tokenizer_says(folder, side):
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    tiny_models.write_json(folder / "tokenizer_config.json", stated | {"truncation_side": side})
    require_equal(folder)
    assert load(folder).record.get("truncation_side") == (None if side == "right" else side)


def test_a_length_beyond_the_models_places_is_cut_to_them(folder):
    write(folder, TRANSFORMER, {"max_seq_length": 4000})
    assert load(folder).max_length == 40
    assert np.isfinite(load(folder).encode(["a" * 100])).all()


@pytest.mark.parametrize("length", ["512", -1, 0, 3.5, [3], True])
def test_a_tokenizers_length_that_is_none_is_named(tmp_path, length):
    folder = tiny_models.save_bert(tmp_path / "m")
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    tiny_models.write_json(folder / "tokenizer_config.json", stated | {"model_max_length": length})
    with pytest.raises(DataError, match="model_max_length"):
        load(folder, Pooling.mean)


def test_xlnet_states_no_end(tmp_path):
    config = transformers.XLNetConfig(
        vocab_size=len(tiny_models.VOCABULARY), d_model=24, n_layer=1, n_head=2, d_inner=32
    )
    folder = tiny_models.save_model(tmp_path / "m", transformers.XLNetModel, config)
    tiny_models.save_tokenizer(folder)
    encoder = load(folder, Pooling.mean)
    assert encoder.max_length == text_room.DEFAULT_LENGTH
    assert np.isfinite(encoder.encode(["a dog", ""])).all()
