"""Input made to harm: refused with one message, or rendered harmless; nothing outside of what was named is written."""

import errno
import io
import json
import os
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas
import pytest
from PIL import Image
from rich.console import Console
from support.fakes import make_store
from typer.testing import CliRunner

from alignvl_cli.ablation.study import load_study
from alignvl_cli.artifacts import file_sha256, read_json, write_json
from alignvl_cli.cli.app import app, leave_with
from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.errors import AlignvlError, DataError, UsageError
from alignvl_cli.recipes import resolve_train
from alignvl_cli.report.tables import as_csv
from alignvl_cli.report.text import json_text, safe
from alignvl_cli.settings import DatasetOptions
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run

ACTING = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "clear": "\x1b[2J\x1b[H",
    "C1 CSI": "\x9b31m",
    "C1 OSC": "\x9d0;owned\x9c",
    "bell": "\x07\x07",
    "backspace": "safe\x08\x08\x08\x08evil",
    "return": "safe\revil",
    "delete": "a\x7fb",
    "form feed": "a\x0cb",
    "right to left": "\u202egnp.exe",
    "isolate": "\u2066a\u2069",
    "arabic mark": "\u061ca",
    "zero width": "a\u200bb",
    "byte order": "\ufeffa",
    "line separator": "a\u2028b",
    "half a character": "a\ud800b",
}
RAW = set("\x00\x07\x08\x0b\x0c\r\x1b\x7f\x9b\x9d\x9c\u202e\u2066\u2069\u061c\u200b\ufeff\u2028\ud800")


def test_a_full_disk_is_told_where_and_what_to_do(capsys):
    def fails(number: int) -> None:
        raise OSError(number, os.strerror(number), "runs/0001/adapters.safetensors")

    assert leave_with(lambda: fails(errno.ENOSPC), verbose=False) == 3
    full = capsys.readouterr().err
    assert full == (
        "alignvl: runs/0001/adapters.safetensors: No space left on device; "
        "make room there, or write elsewhere, and run it again\n"
    )
    assert leave_with(lambda: fails(errno.EACCES), verbose=False) == 3
    assert "make room" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ACTING)
def test_no_acting_character_reaches_the_terminal(capsys, tried, name):
    text = ACTING[name]

    def fails() -> None:
        raise DataError(f"{text}: not found\ntry again")

    leave_with(fails, verbose=False)
    said = capsys.readouterr().err
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, color_system=None).print(safe(text))
    document = json_text({"caption": text})
    for shown in (said, stream.getvalue(), document):
        assert not RAW & set(shown)
    assert json.loads(document) == {"caption": text}
    assert "\ntry again" in said, "line feeds of our own stay"
    tried["hostile", "text on the terminal"] += 1


def test_inspect_and_search_of_hostile_ids_print_no_escape(tmp_path, tried):
    store = make_store(tmp_path / "\x1b[31mred.h5", images=20)
    for words in (["inspect", store], ["inspect", store, "--json"], ["train", store, "--epochs", "x"]):
        result = CliRunner().invoke(app, [*map(str, words), "--workspace", str(tmp_path / "w")])
        assert "\x1b[31mred" not in result.output
        tried["hostile", "text on the terminal"] += 1


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://e")'])
def test_no_cell_of_a_csv_is_a_formula(tried, cell):
    row = as_csv(pandas.DataFrame({"arm": [cell]})).splitlines()[1]
    assert row.lstrip('"')[0] not in "=+-@\t\r"
    tried["hostile", "CSV cell"] += 1


NAMES = ["../../evil", "/etc/evil", "..", ".", "a/b", "a\\b", "a\0b", "", "con\n", " ", "x" * 400]


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_cannot_name_a_place_outside_its_study(tmp_path, tried, name):
    study = tmp_path / "s.toml"
    key = json.dumps(name)
    study.write_text(f'name = "a"\nquestion = "q"\nreference = {key}\nseeds = [0]\n[arms.{key}]\n[arms.other]\n')
    with pytest.raises((UsageError, DataError)):
        load_study(study)
    study.write_text(f'name = {key}\nquestion = "q"\nreference = "a"\nseeds = [0]\n[arms.a]\n[arms.other]\n')
    with pytest.raises((UsageError, DataError)):
        load_study(study)
    tried["hostile", "name of a study or arm"] += 2


def link_outside(file: h5py.File, elsewhere: Path) -> None:
    del file["image/latent"]
    file["image/latent"] = h5py.ExternalLink(str(elsewhere), "image/latent")


def group_outside(file: h5py.File, elsewhere: Path) -> None:
    del file["image"]
    file["image"] = h5py.ExternalLink(str(elsewhere), "image")


def soft_link(file: h5py.File, elsewhere: Path) -> None:
    del file["image/uri"]
    file["image/uri"] = h5py.SoftLink("/image/id")


def loop(file: h5py.File, elsewhere: Path) -> None:
    del file["image/uri"]
    file["image/uri"] = h5py.SoftLink("/image/uri")


def virtual(file: h5py.File, elsewhere: Path) -> None:
    shape = file["image/latent"].shape
    del file["image/latent"]
    layout = h5py.VirtualLayout(shape, "float32")
    layout[:] = h5py.VirtualSource(str(elsewhere), "image/latent", shape)
    file.create_virtual_dataset("image/latent", layout)


def external(file: h5py.File, elsewhere: Path) -> None:
    shape = file["image/latent"].shape
    del file["image/latent"]
    file.create_dataset("image/latent", shape, "float32", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def huge_numbers(file: h5py.File, elsewhere: Path) -> None:
    del file["image/sha256"], file["image/split"]
    file.create_dataset("image/sha256", (1 << 40, 32), "uint8", chunks=(1 << 20, 32))
    file.create_dataset("image/split", (1 << 40,), "uint8", chunks=(1 << 20,))


def huge_latents(file: h5py.File, elsewhere: Path) -> None:
    del file["image/latent"]
    file.create_dataset("image/latent", (1 << 40, 1 << 20), "float32", chunks=(1, 1 << 20))


def huge_strings(file: h5py.File, elsewhere: Path) -> None:
    del file["image/id"]
    file.create_dataset("image/id", (1 << 40,), h5py.string_dtype(), chunks=(1 << 16,))


def huge_digest(file: h5py.File, elsewhere: Path) -> None:
    del file["digest/image/latent"]
    file.create_dataset("digest/image/latent", (1 << 40,), "uint64", chunks=(1 << 16,))


def short_digest(file: h5py.File, elsewhere: Path) -> None:
    del file["digest/image/latent"]
    file.create_dataset("digest/image/latent", data=np.empty(0, "uint64"))


def deep_record(file: h5py.File, elsewhere: Path) -> None:
    file.attrs["made_by"] = "[" * 30_000


def dataset_for_group(file: h5py.File, elsewhere: Path) -> None:
    del file["text"]
    file["text"] = 1


STORES = [
    link_outside, group_outside, soft_link, loop, virtual, external, huge_numbers, huge_latents, huge_strings,
    huge_digest, short_digest, deep_record, dataset_for_group,
]  # fmt: skip


@pytest.mark.parametrize("spoil", STORES, ids=lambda spoil: spoil.__name__)
def test_a_store_that_leads_elsewhere_or_lies_about_its_size(tmp_path, tried, spoil):
    elsewhere = make_store(tmp_path / "elsewhere.h5", images=20)
    store = Path(shutil.copy(elsewhere, tmp_path / "s.h5"))
    with h5py.File(store, "r+") as file:
        spoil(file, elsewhere)
    with pytest.raises(DataError, match=r"s\.h5"):
        open_store(store)
    tried["hostile", "HDF5"] += 1


def header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


SAFETENSORS = {
    "length of the header": struct.pack("<Q", 1 << 60) + b"{}",
    "no header": b"\0" * 8,
    "huge tensor": header(tau={"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}),
    "negative offset": header(tau={"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}) + b"\0" * 4,
    "overlap": header(
        a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        b={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    )
    + b"\0" * 4,
    "shape without bytes": header(tau={"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 4]}) + b"\0" * 4,
    "unknown type": header(tau={"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}) + b"\0" * 4,
    "not JSON": struct.pack("<Q", 9) + b"{" * 9,
    "a pickle": b"\x80\x04cposix\nsystem\n",
    "empty": b"",
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_weights_whose_header_lies(copied, tried, name):
    weights = copied / "run" / "adapters.safetensors"
    weights.write_bytes(SAFETENSORS[name])
    config = read_json(copied / "run" / "config.json", "config")
    write_json(copied / "run" / "config.json", {**config, "adapters_sha256": file_sha256(weights)})
    with pytest.raises(DataError, match=r"adapters\.safetensors"):
        load_run(copied / "run")
    tried["hostile", "safetensors"] += 1


def test_tar_members_that_lead_outside(tmp_path, tried):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    path = tmp_path / "in" / "t.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, to: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, to
            tar.addfile(member, io.BytesIO(data))

        for stem in ("good", "../../up", "/abs", "a/../../b"):
            add(f"{stem}.png", stream.getvalue())
            add(f"{stem}.txt", b"caption")
        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
        for number, kind in enumerate(kinds):
            add(f"odd{number}.png", kind=kind, to="/etc/passwd")
            add(f"odd{number}.txt", b"caption")
    before = {str(place) for place in tmp_path.rglob("*")}
    dataset = open_dataset(str(path), DatasetOptions())
    assert all(item.source.path == path for item in dataset.items), "bytes come from the tar alone"
    assert "odd0" not in " ".join(item.id for item in dataset.items if item.source.read())
    assert {str(place) for place in tmp_path.rglob("*")} == before
    tried["hostile", "tar member"] += 8


JSONS = {
    "deep": "[" * 200_000,
    "deep object": '{"a":' * 100_000,
    "deep caption": '{"image": "a.png", "captions": ' + "[" * 100_000,
    "huge number": '{"image": ' + "9" * 100_000 + "}",
    "NaN": '{"image": NaN, "caption": Infinity}',
    "captions of objects": '{"image": "a.png", "captions": [{"a": 1}]}',
    "not an object": '"image"',
}


@pytest.mark.parametrize("name", JSONS)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_json_made_to_exhaust_is_one_message(tmp_path, tried, name, suffix):
    path = tmp_path / f"m.{suffix}"
    path.write_text(JSONS[name] + "\n")
    with pytest.raises(AlignvlError) as caught:
        open_dataset(str(path), DatasetOptions())
    assert caught.value.exit_code in (2, 3)
    assert len(str(caught.value)) < 2000
    tried["hostile", "JSON"] += 1


def test_ten_megabytes_of_caption_are_read_whole(tmp_path, tried):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"image": "a.png", "caption": "é" * 5_000_000}) + "\n")
    (item,) = open_dataset(str(path), DatasetOptions()).items
    assert len(item.captions[0]) == 5_000_000
    tried["hostile", "caption"] += 1


@pytest.mark.parametrize("value", [1e999, float("nan"), -1, "1; rm -rf /", [1], {}, None, True, "\x1b[31m", "9" * 9999])
def test_a_setting_of_no_sense_is_a_usage_error(tried, value):
    with pytest.raises(AlignvlError) as caught:
        resolve_train({"epochs": value})
    assert caught.value.exit_code == 2
    assert len(os.fsencode(str(caught.value).encode("utf-8", "replace"))) < 20_000
    tried["hostile", "setting"] += 1
