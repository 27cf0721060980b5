"""What a user may type for a model, and one clear message for each way in which it leads nowhere."""

import codecs

import pytest
from huggingface_hub import constants
from support import tiny_models

from alignvl_cli.encoders import folders
from alignvl_cli.encoders.folders import Side, find_model, spec_of
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import Trust

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub cache, offline; `hub(repo, save)` puts a model into it as a download would."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repo, save):
        root = cache / f"models--{repo.replace('/', '--')}"
        snapshot = root / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(COMMIT)
        return save(snapshot)

    return put


def test_a_local_folder_is_found_by_any_path(tmp_path, monkeypatch):
    folder = tiny_models.save_bert(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    for spec in ("m", "./m", str(folder), f"{folder}/"):
        found = find_model(spec, Side.text)
        assert (found.id, found.commit, found.path, found.spec) == (str(folder), None, folder, str(folder))


def test_a_folder_name_may_hold_an_at_sign(tmp_path):
    folder = tiny_models.save_bert(tmp_path / "model@v2")
    assert find_model(str(folder), Side.text).path == folder


def test_a_revision_of_a_local_folder_is_refused(tmp_path, monkeypatch):
    tiny_models.save_bert(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="m is a local folder, and those have no revisions"):
        find_model("m@main", Side.text)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"
MARKED = "begins with a byte order mark.*save it as UTF-8 without one"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model.safetensors", lambda data: LFS, "Git LFS pointer.*git lfs pull"),
        ("tokenizer.json", lambda data: LFS, "Git LFS pointer.*git lfs pull"),
        ("model.safetensors", lambda data: b"/annex/objects/x\n", "git-annex pointer.*git annex get"),
        ("config.json", lambda data: codecs.BOM_UTF8 + data, MARKED),
        ("tokenizer.json", lambda data: codecs.BOM_UTF8 + data, MARKED),
        ("tokenizer_config.json", lambda data: data.decode().encode("utf-16"), MARKED),
        ("tokenizer_config.json", lambda data: b"{", "this model file is not valid JSON"),
        ("tokenizer_config.json", lambda data: b"[]", "should hold a JSON object"),
    ],
)
def test_a_file_that_transformers_trips_over_is_named(tmp_path, name, change, said):
    folder = tiny_models.save_bert(tmp_path / "m")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(change(data))
    with pytest.raises(DataError, match=rf"/m/{name}: .*{said}"):
        find_model(str(folder), Side.text)
    (folder / name).write_bytes(data)
    find_model(str(folder), Side.text)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "config.json"])
def test_an_image_processor_with_a_byte_order_mark_is_named(tmp_path, name):
    folder = tiny_models.save_dinov2(tmp_path / "m")
    (folder / name).write_bytes(codecs.BOM_UTF8 + (folder / name).read_bytes())
    with pytest.raises(DataError, match=rf"/m/{name}: {MARKED}"):
        find_model(str(folder), Side.vision)


def test_an_index_of_weights_with_a_byte_order_mark_is_named(tmp_path):
    folder = tiny_models.save_bert(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    tiny_models.write_json(index, {"weight_map": {"x": "model-00001-of-00001.safetensors"}})
    find_model(str(folder), Side.text)
    index.write_bytes(codecs.BOM_UTF8 + index.read_bytes())
    with pytest.raises(DataError, match=rf"/m/model.safetensors.index.json: {MARKED}"):
        find_model(str(folder), Side.text)


def test_a_list_of_modules_with_a_byte_order_mark_is_read(tmp_path):
    folder = tiny_models.save_sentence_transformer(tmp_path / "m")
    (folder / "modules.json").write_bytes(codecs.BOM_UTF8 + (folder / "modules.json").read_bytes())
    assert find_model(str(folder), Side.text).path == folder


def test_a_vocabulary_is_looked_at_where_it_is_read_alone(tmp_path):
    folder = tiny_models.save_bert(tmp_path / "m")
    (folder / "vocab.txt").write_bytes(codecs.BOM_UTF8 + b"[PAD]\n")
    find_model(str(folder), Side.text)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=rf"/m/vocab.txt: {MARKED}"):
        find_model(str(folder), Side.text)


@pytest.mark.parametrize("spec", ["owner/model", "owner/model@main", f"owner/model@{COMMIT}"])
def test_a_cached_model_is_found_offline_with_its_commit(hub, spec):
    snapshot = hub("owner/model", tiny_models.save_dinov2)
    found = find_model(spec, Side.vision)
    assert (found.id, found.commit, found.path) == ("owner/model", COMMIT, snapshot)
    assert found.spec == f"owner/model@{COMMIT}" == spec_of(found.id, found.commit)


def test_the_transformer_may_live_in_a_folder_of_its_own(tmp_path):
    folder = tmp_path / "m"
    tiny_models.save_clip(folder / "0_CLIPModel")
    tiny_models.write_json(
        folder / "modules.json", [{"path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    )
    assert find_model(str(folder), Side.vision).path == folder / "0_CLIPModel"


def test_offline_an_unknown_model_says_so(hub):
    with pytest.raises(DataError, match=r"owner/none: .*HF_HUB_OFFLINE is set; unset it.*local folder"):
        find_model("owner/none", Side.vision)
    hub("owner/model", tiny_models.save_dinov2)
    with pytest.raises(DataError, match=r"owner/model@v9: .*HF_HUB_OFFLINE is set"):
        find_model("owner/model@v9", Side.vision)


def test_without_a_network_the_cache_serves_and_its_absence_is_said(hub, monkeypatch):
    asked = []

    def no_network(self, repo, **options):
        asked.append(repo)
        raise folders.HTTPError("name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(folders.HfApi, "model_info", no_network)
    hub("owner/model", tiny_models.save_dinov2)
    assert find_model("owner/model", Side.vision).commit == COMMIT
    with pytest.raises(DataError, match=r"the Hub cannot be reached.*HF_HUB_OFFLINE is not set"):
        find_model("owner/none", Side.vision)
    assert asked == ["owner/model", "owner/none"]  # once each: no retries


@pytest.mark.parametrize(("spec", "revision"), [("owner/model", None), ("owner/model@refs/pr/1", "refs/pr/1")])
def test_online_only_needed_files_are_fetched_of_one_commit(hub, monkeypatch, spec, revision):
    """By the name that was typed, so that the cache knows it offline; the weights by the commit that it led to."""
    snapshot = hub("owner/model", tiny_models.save_sentence_transformer)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    calls = []

    def download(repo, **options):
        calls.append(options)
        return str(snapshot)

    monkeypatch.setattr(folders.HfApi, "model_info", lambda self, repo, revision, timeout: None)
    monkeypatch.setattr(folders, "snapshot_download", download)
    assert find_model(spec, Side.text).spec == f"owner/model@{COMMIT}"
    assert [call["revision"] for call in calls] == [revision, COMMIT]
    assert [call["allow_patterns"] for call in calls] == [folders.SMALL_FILES, ["model.safetensors"]]
    assert not any(call["local_files_only"] for call in calls)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("RepositoryNotFoundError", "the Hub has no such model, or it is private and HF_TOKEN is not set"),
        ("GatedRepoError", "access to this model must be granted"),
        ("RevisionNotFoundError", "no such revision"),
    ],
)
def test_what_the_hub_refuses_is_said(hub, monkeypatch, problem, words):
    class Refusal(getattr(folders, problem)):
        def __init__(self):  # the real one wants a response of whichever HTTP library is in use
            pass

    def refuse(self, repo, **options):
        raise Refusal

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(folders.HfApi, "model_info", refuse)
    with pytest.raises(DataError, match=f"owner/model@x: .*{words}"):
        find_model("owner/model@x", Side.vision)


def test_a_cache_that_cannot_be_written_is_said(hub, monkeypatch):
    def full(repo, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "snapshot_download", full)
    with pytest.raises(DataError, match=r"cannot be kept in the cache .*No space left"):
        find_model("owner/model", Side.vision)


@pytest.mark.parametrize("spec", ["/nowhere/at/all", "./nothing", "~/no/such", "a/b/c"])
def test_a_folder_that_is_not_there(spec):
    with pytest.raises(DataError, match="there is no such folder"):
        find_model(spec, Side.text)


def test_names_that_can_be_nothing(tmp_path):
    with pytest.raises(DataError, match="neither a folder here nor a Hub id"):
        find_model("not a name!", Side.text)
    with pytest.raises(UsageError, match="no revision after the @"):
        find_model("owner/model@", Side.text)
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(DataError, match="is a file; give the folder"):
        find_model(str(file), Side.text)


def test_every_missing_file_is_named(tmp_path):
    with pytest.raises(DataError) as refusal:
        find_model(str(tmp_path), Side.vision)
    assert str(tmp_path) in str(refusal.value)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert name in str(refusal.value)
    with pytest.raises(DataError, match=r"tokenizer\.json or vocab\.txt or vocab\.json with merges\.txt"):
        find_model(str(tiny_models.save_dinov2(tmp_path / "m")), Side.text)


def test_a_missing_shard_is_named(tmp_path):
    folder = tiny_models.save_dinov2(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    tiny_models.write_json(folder / "model.safetensors.index.json", index)
    (folder / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(DataError, match=r"missing: model-00002-of-00002\.safetensors$"):
        find_model(str(folder), Side.vision)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(DataError, match="index of weights is broken"):
        find_model(str(folder), Side.vision)


def test_pickled_weights_are_refused(tmp_path):
    folder = tiny_models.save_dinov2(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pickled, and unpickling can run code.*model\.safetensors.*--allow-pickle"):
        find_model(str(folder), Side.vision)


def test_adapters_without_their_model_are_refused(tmp_path):
    folder = tiny_models.save_bert(tmp_path / "m")
    tiny_models.write_json(folder / "adapter_config.json", {"base_model_name_or_path": "owner/elsewhere"})
    with pytest.raises(DataError, match="PEFT adapter; merge it"):
        find_model(str(folder), Side.text)


def test_modules_that_point_nowhere_are_said(tmp_path):
    tiny_models.write_json(tmp_path / "modules.json", [{"path": "0_Transformer", "type": "x.Transformer"}])
    with pytest.raises(DataError, match="0_Transformer, which is not there"):
        find_model(str(tmp_path), Side.text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flax_model.msgpack", "of Flax, which transformers no longer reads"),
        ("tf_model.h5", "of TensorFlow"),
        ("model.ckpt.index", "of TensorFlow"),
        ("model.fp16.safetensors", "rename the file in a copy of the folder to model.safetensors"),
        ("pytorch_model.fp16.bin", "convert them to model.safetensors"),
        ("weights.pth", "convert them to model.safetensors"),
    ],
)
def test_weights_that_no_flag_makes_readable_are_told_from_pickled_ones(tmp_path, name, said):
    folder = tiny_models.save_bert(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / name)
    for trust in (Trust(), Trust(pickle=True)):
        with pytest.raises(DataError, match=rf"{name}.*{said}") as caught:
            find_model(str(folder), Side.text, trust)
        assert "allow-pickle" not in str(caught.value)
    if "rename" in said:  # as advised
        (folder / name).rename(folder / "model.safetensors")
        assert find_model(str(folder), Side.text).path == folder


def test_files_beside_missing_weights_are_not_taken_for_weights(tmp_path):
    folder = tiny_models.save_bert(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "training_args.bin")
    with pytest.raises(DataError, match=r"missing: model\.safetensors"):
        find_model(str(folder), Side.text)


@pytest.mark.parametrize("processor", [None, "TimmWrapperImageProcessor"])
@pytest.mark.parametrize("stated", [{"architecture": "vit_tiny_patch16_224"}, {"model_type": "timm_wrapper"}])
def test_a_timm_folder_asks_for_timm_and_no_processor_file(tmp_path, processor, stated):
    folder = tiny_models.save_vit(tmp_path / "m")
    tiny_models.write_json(folder / "config.json", stated | {"pretrained_cfg": {"input_size": [3, 224, 224]}})
    (folder / "preprocessor_config.json").unlink()
    if processor:
        tiny_models.write_json(folder / "preprocessor_config.json", {"image_processor_type": processor})
    with pytest.raises(DataError, match=r"a timm model, which needs timm and torchvision, and timm.* not here"):
        find_model(str(folder), Side.vision)
