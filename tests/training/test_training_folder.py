"""The run folder: what is written is what is loaded, and nothing else passes for a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignvl_cli.align.adapters import AdapterPair, AdapterShape, new_pair
from alignvl_cli.align.streams import Streams
from alignvl_cli.artifacts import file_sha256, read_json
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import AdapterKind, LatentNorm, Loss
from alignvl_cli.training.run_folder import (
    ADAPTERS,
    CONFIG,
    FORMAT,
    METRICS,
    RESULT,
    RunWriter,
    claim_run,
    is_complete_run,
    load_run,
    load_unfinished,
)

SHAPE = AdapterShape(
    kind=AdapterKind.fusemix,
    image_width=6,
    text_width=4,
    depth=1,
    expansion=4,
    embed_dim=3,
    dropout=0.2,
    latent_norm=LatentNorm.standardize,
    temperature=None,
)


def write_run(path: Path, seed: int = 0, finish: bool = True, shape: AdapterShape = SHAPE) -> AdapterPair:
    claim_run(path, overwrite=False)
    pair = new_pair(shape, Streams(seed))
    pair.image.norm.fit([torch.randn(20, 6, generator=torch.Generator().manual_seed(0))])
    config = {
        "adapters": shape.to_json(),
        "encoder_hash": "e" * 64,
        "vision": {"record": {"model": "v"}, "about": {"id": "v"}},
        "text": {"record": {"model": "t"}, "about": {"id": "t"}},
        "stores": [{"path": "/data/store.h5", "content_hash": "c" * 64}],
        "selection_split": "val",
    }
    with RunWriter(path, config, {"threads": 2}) as writer:
        writer.log({"kind": "step", "loss": 1.5})
        writer.save_adapters(pair.state_dict())
        writer.log({"kind": "step", "loss": 1.25})
        if finish:
            writer.finish({"best": {"mean_recall": 50.0}})
    return pair


def test_what_is_written_is_what_is_loaded(tmp_path):
    written = write_run(tmp_path / "run").eval()
    run = load_run(tmp_path / "run")
    latents = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(run.adapters.project_image(latents), written.project_image(latents))
    assert not run.adapters.training
    assert run.temperature == pytest.approx(0.07)
    assert (run.encoder_hash, run.store_hash, run.store_path) == ("e" * 64, "c" * 64, "/data/store.h5")
    assert (run.vision["about"]["id"], run.text["about"]["id"], run.split_used) == ("v", "t", "val")
    assert run.result == {"best": {"mean_recall": 50.0}}
    assert run.config["adapters_sha256"] == file_sha256(tmp_path / "run" / ADAPTERS)
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["loss"] for line in lines] == [1.5, 1.25]


@pytest.mark.parametrize("kind", AdapterKind)
@pytest.mark.parametrize("fixed", [None, 0.05])
def test_every_adapter_with_the_sigmoid_loss_is_rebuilt(tmp_path, kind, fixed):
    shape = replace(SHAPE, kind=kind, loss=Loss.sigmoid, temperature=fixed)
    written = write_run(tmp_path / "run", shape=shape).eval()
    run = load_run(tmp_path / "run")
    latents = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(run.adapters.project_text(latents), written.project_text(latents))
    assert run.temperature == pytest.approx(fixed or 0.1)
    assert run.adapters.bias.item() == -10
    edit_weights(tmp_path / "run", lambda weights: weights["log_t"].fill_(-1.0))
    with pytest.raises(DataError, match=r"temperature 2\.718"):
        load_run(tmp_path / "run")


def test_equal_weights_are_equal_bytes(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_run(tmp_path / name, seed)
    one, two, three = ((tmp_path / name / ADAPTERS).read_bytes() for name in ("one", "two", "three"))
    assert one == two
    assert one != three
    assert len(one) == len(three)


def test_an_unfinished_run_is_refused_and_said_to_be_one(tmp_path):
    write_run(tmp_path / "run", finish=False)
    assert not is_complete_run(tmp_path / "run")
    with pytest.raises(DataError, match=r"incomplete.*train it again with `alignvl train --output .* --overwrite`"):
        load_run(tmp_path / "run")


def edit_config(run: Path, **changes) -> None:
    config = read_json(run / CONFIG, "config")
    (run / CONFIG).write_text(json.dumps(config | changes))


def edit_weights(run: Path, change) -> None:
    """Change the weights and the sha256 with them: the deeper checks must notice."""
    weights = load_file(run / ADAPTERS)
    change(weights)
    save_file(weights, run / ADAPTERS)
    edit_config(run, adapters_sha256=file_sha256(run / ADAPTERS))


def flip_a_byte(run: Path) -> None:
    data = bytearray((run / ADAPTERS).read_bytes())
    data[-3] ^= 1
    (run / ADAPTERS).write_bytes(bytes(data))


def not_safetensors(run: Path) -> None:
    (run / ADAPTERS).write_text("hello")
    edit_config(run, adapters_sha256=file_sha256(run / ADAPTERS))


DAMAGE = {
    "flipped byte": (flip_a_byte, "sha256"),
    "no weights": (lambda run: (run / ADAPTERS).unlink(), "cannot read these weights"),
    "not safetensors": (not_safetensors, "no safetensors file"),
    "tensor missing": (lambda run: edit_weights(run, lambda w: w.pop("tau")), "tau is absent, wanted"),
    "tensor too many": (
        lambda run: edit_weights(run, lambda w: w.update(x=torch.ones(1))),
        r"x is \(1,\), wanted",
    ),
    "tensor misshaped": (
        lambda run: edit_weights(run, lambda w: w.update(tau=torch.ones(2))),
        r"tau is \(2,\)",
    ),
    "weights not finite": (
        lambda run: edit_weights(run, lambda w: w["text.body.2.bias"].fill_(float("nan"))),
        "text.body.2.bias holds NaN",
    ),
    "temperature out of range": (lambda run: edit_weights(run, lambda w: w["tau"].fill_(0.75)), "temperature 0.75"),
    "config not JSON": (lambda run: (run / CONFIG).write_text("{"), "not valid JSON"),
    "config missing": (lambda run: (run / CONFIG).unlink(), "not a run"),
    "another format": (lambda run: edit_config(run, format="alignvl.run/9"), "this version reads alignvl.run/1"),
    "unknown adapter": (lambda run: edit_config(run, adapters={"kind": "cubic"}), "not a run's configuration"),
    "no stores": (lambda run: edit_config(run, stores=[]), "not a run's configuration"),
    "result not JSON": (lambda run: (run / RESULT).write_text(""), "not valid JSON"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused(tmp_path, damage):
    write_run(tmp_path / "run")
    spoil, message = DAMAGE[damage]
    spoil(tmp_path / "run")
    with pytest.raises(DataError, match=message):
        load_run(tmp_path / "run")


def test_a_missing_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such run"):
        load_run(tmp_path / "nowhere")


def test_a_place_is_claimed_once(tmp_path):
    path = tmp_path / "deep" / "run"
    claim_run(path, overwrite=False)
    claim_run(path, overwrite=False)  # still empty
    (path / CONFIG).write_text(json.dumps({"format": FORMAT}))
    with pytest.raises(UsageError, match="an unfinished run is there already; add --overwrite"):
        claim_run(path, overwrite=False)
    (path / RESULT).write_text("{}")
    with pytest.raises(UsageError, match="a complete run is there already; add --overwrite"):
        claim_run(path, overwrite=False)
    claim_run(path, overwrite=True)
    assert list(path.iterdir()) == []


def test_what_is_no_run_is_never_removed(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UsageError, match="no run; name another place"):
        claim_run(tmp_path / "thesis", overwrite=True)
    with pytest.raises(UsageError, match="this is a file"):
        claim_run(tmp_path / "file", overwrite=True)
    with pytest.raises(DataError, match="cannot write there"):
        claim_run(tmp_path / "file" / "run", overwrite=False)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "vit", "architectures": ["ViTModel"]}', "a model folder of Hugging Face"),
        ('{"adapters": {}, "adapters_sha256": "0"}', "an exported run"),
        ("{}", "of another program"),
        ("{", "not valid JSON"),
    ],
)
def test_a_foreign_configuration_is_no_run_and_said_to_be_what_it_is(tmp_path, config, said):
    (tmp_path / CONFIG).write_text(config)
    for what in (load_run, load_unfinished):
        with pytest.raises(DataError, match=f"not a run .*{said}"):
            what(tmp_path)
    with pytest.raises(UsageError, match=f"no run .*{said}.*name another place"):
        claim_run(tmp_path, overwrite=True)
    assert (tmp_path / CONFIG).read_text() == config


@pytest.mark.parametrize("name", ["thesis.txt", "eval/thesis.txt", "checkpoint/thesis.txt", "figures/one.png"])
def test_what_lies_beside_a_run_keeps_the_run_from_being_replaced(tmp_path, name):
    write_run(tmp_path / "run")
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).write_text("years of work")
    with pytest.raises(UsageError, match=f"beside the run it holds {name}"):
        claim_run(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / name).read_text() == "years of work"
    load_run(tmp_path / "run")


def test_all_that_is_written_into_a_run_may_be_replaced_and_a_damaged_run_too(tmp_path):
    write_run(tmp_path / "run")
    for name in (
        "eval/store-test.json",
        "eval/store-test.parquet",
        "eval/store-test-reliability.png",
        "checkpoint/000000012.safetensors",
        "checkpoint/.state.json.17.tmp",
        "tensorboard/events.out.tfevents.1.host.2.0",
        ".DS_Store",
        "eval/._store-test.json",
    ):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("ours")
    config = (tmp_path / "run" / CONFIG).read_text()
    (tmp_path / "run" / CONFIG).write_text(config.replace('"threads"', '"treads"').replace("/data", "/date"))
    claim_run(tmp_path / "run", overwrite=True)
    assert list((tmp_path / "run").iterdir()) == []
