"""With no network at all the whole pipeline works, and nothing even tries to reach one."""

import json
import socket
from pathlib import Path

import pytest
from support.coloured_squares import train_on_colours
from support.command_line import CommandLine
from support.tiny_models import save_dinov2, save_sentence_transformer


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of the network; every attempt fails."""
    asked: list[str] = []

    def refuse(*words, **named):
        asked.append(repr(words))
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return asked


def test_the_whole_pipeline_asks_no_network(tmp_path, tries, tried):
    alignvl = CommandLine(tmp_path / "w")
    encoders = ["--vision", save_dinov2(tmp_path / "v"), "--text", save_sentence_transformer(tmp_path / "t")]
    train_on_colours(alignvl, tmp_path, [*map(str, encoders), "--device", "cpu", "--workers", "0"])
    alignvl.succeeds("eval", "--split", "all", "--bootstrap")
    found = json.loads(alignvl.succeeds("search", "red square", "--json"))
    assert found["results"]
    for path in (*(tmp_path / "w").glob("*/*"),):
        if not path.name.startswith("."):
            alignvl.succeeds("inspect", path, "--check")
    alignvl.succeeds("doctor")
    assert tries == []
    tried["offline", "stages"] += 5


def test_what_a_run_checks_is_all_of_it(copied):
    alignvl = CommandLine(copied / "w")
    alignvl.succeeds("inspect", copied / "run", "--check")
    evaluation = next((copied / "run" / "eval").glob("*.json"))
    for name in ("metrics.jsonl", "environment.json", evaluation.with_suffix(".parquet"), evaluation):
        path: Path = copied / "run" / name
        data = path.read_bytes()
        digit = next(place for place in range(len(data) // 2, len(data)) if data[place : place + 1].isdigit())
        path.write_bytes(data[:digit] + bytes([data[digit] ^ 1]) + data[digit + 1 :])
        assert path.name.rpartition(".")[0] in alignvl.fails(3, "inspect", copied / "run", "--check")
        path.write_bytes(data)
