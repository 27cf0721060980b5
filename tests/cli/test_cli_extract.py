"""`alignvl extract` given again: nothing to do for a store of the same pictures, and never for one of others."""

import io
import json
import os
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import alignvl_cli
from alignvl_cli.report.reproduce import extract_command
from alignvl_cli.store.reader import open_store


def write_picture(path: Path, number: int) -> None:
    Image.new("RGB", (20, 20), (number, 255 - number, 77)).save(path)


@pytest.fixture
def manifest(tmp_path):
    """Forty pictures of one colour each, in a folder beside the manifest."""
    (tmp_path / "photos").mkdir()
    for number in range(40):
        write_picture(tmp_path / "photos" / f"{number:02d}.png", number)
    path = tmp_path / "own.jsonl"
    rows = [{"image": f"photos/{number:02d}.png", "captions": [f"picture {number}"]} for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def extract(empty, tmp_path, tiny_encoders):
    """Words of the command that extracts a dataset into `s.h5`."""
    return lambda dataset: ["extract", dataset, "-o", tmp_path / "s.h5", "--workers", 0, *tiny_encoders]


def test_the_same_pictures_leave_nothing_to_do(empty, tmp_path, manifest, extract):
    empty.succeeds(*extract(manifest))
    before = (tmp_path / "s.h5").read_bytes()
    again = empty(*extract(manifest))
    assert (again.exit_code, again.stdout) == (0, f"{tmp_path / 's.h5'}\n")
    assert "up to date" in again.stderr
    assert "nothing to do" in again.stderr
    assert (tmp_path / "s.h5").read_bytes() == before


@pytest.fixture
def opened():
    """Names of the picture files that this process opens, as Python's audit events tell them."""
    names: list[str] = []
    is_over = False

    def heard(event, arguments):
        if not is_over and event == "open" and str(arguments[0]).endswith(".png"):
            names.append(Path(arguments[0]).name)

    sys.addaudithook(heard)  # for good: nothing takes a hook away
    yield names
    is_over = True


def test_each_picture_is_opened_once_and_never_again(empty, tmp_path, manifest, extract, opened):
    names = sorted(f"{number:02d}.png" for number in range(40))
    empty.succeeds(*extract(manifest))
    assert sorted(opened) == names
    opened.clear()
    empty.succeeds(*extract(manifest))
    assert opened == [], "size and time of every file are as they were"
    (tmp_path / "photos" / "07.png").touch()
    empty.succeeds(*extract(manifest))
    assert opened == ["07.png"]
    opened.clear()
    empty.succeeds(*extract(manifest))
    assert opened == []


@pytest.mark.slow
@pytest.mark.parametrize("change", ["nothing", "weights", "pooling", "dtype", "elsewhere"])
def test_an_up_to_date_store_is_known_without_its_encoders(
    empty, tmp_path, manifest, extract, tiny_encoders, monkeypatch, change
):
    """No model is loaded while everything is as it was; what decides a latent is never passed over."""
    vision = tiny_encoders[tiny_encoders.index("--vision") + 1]
    copy = shutil.copytree(vision, tmp_path / "vision")
    words = [copy if word == vision else word for word in extract(manifest)]
    empty.succeeds(*words)
    if change == "nothing":
        monkeypatch.setattr("alignvl_cli.encoders.vision.load_vision", None)
        assert "up to date" in empty(*words).stderr
        (tmp_path / "photos" / "08.png").unlink()
        assert "1 of 40 pictures cannot be read" in " ".join(empty(*words).stderr.split())
    elif change == "weights":
        weights = load_file(copy / "model.safetensors")
        name = next(name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.ndim > 1)
        save_file(weights | {name: weights[name] + 1}, copy / "model.safetensors", metadata={"format": "pt"})
        assert "vision.weights" in empty.fails(2, *words)
    elif change == "elsewhere":
        copy.rename(tmp_path / "moved")
        moved = [tmp_path / "moved" if word == copy else word for word in words]
        assert "up to date" in empty(*moved).stderr, "the same model in another place"
    else:
        more = {"pooling": ["--image-pooling", "mean"], "dtype": ["--dtype", "float16"]}[change]
        assert "other data or settings" in empty.fails(2, *words, *more)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--image-pooling", "mean", "--text-pooling", "cls", "--text-prefix", ""],
        ["--text-prefix", "a photo: ", "--image-layers", "1,last", "--views", "2", "--max-pixels", "5000"],
    ],
)
def test_the_command_in_a_report_makes_the_store_again(empty, tmp_path, manifest, extract, flags):
    """By its own words alone: no flag that decides a latent is lost."""
    empty.succeeds(*extract(manifest), *flags)
    store = open_store(tmp_path / "s.h5")
    words = shlex.split(extract_command(store.dataset, store.vision, store.text, store.made_by["settings"]))
    assert words[0] == "alignvl"
    assert "up to date" in empty(*words[1:], "-o", tmp_path / "s.h5").stderr
    empty.succeeds(*words[1:], "-o", tmp_path / "again.h5")
    assert open_store(tmp_path / "again.h5").content_hash == store.content_hash


@pytest.mark.slow
@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text("[]")])
def test_a_store_without_its_record_of_files_is_compared_once(empty, tmp_path, manifest, extract, opened, lose):
    empty.succeeds(*extract(manifest))
    lose(tmp_path / "s.h5.files.json")
    for opens in (40, 0):
        opened.clear()
        assert "up to date" in empty(*extract(manifest)).stderr
        assert len(opened) == opens


@pytest.mark.slow
def test_a_change_of_neither_size_nor_time_is_found_by_verify_alone(empty, tmp_path, manifest, extract):
    path = tmp_path / "photos" / "07.png"
    empty.succeeds(*extract(manifest))
    before = path.stat()
    Image.new("RGB", (20, 20), (7, 248, 78)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert "up to date" in empty(*extract(manifest)).stderr
    verified = empty("inspect", tmp_path / "s.h5", "--verify", 40)
    assert "photos/07.png" in verified.stdout + verified.stderr


@pytest.mark.slow
def test_a_replaced_picture_is_named_and_overwrite_takes_it_in(empty, tmp_path, manifest, extract):
    empty.succeeds(*extract(manifest))
    write_picture(tmp_path / "photos" / "07.png", 200)
    said = empty.fails(4, *extract(manifest))
    assert "1 of 40 pictures have changed since (photos/07.png)" in said
    assert "--overwrite" in said
    empty.succeeds(*extract(manifest), "--overwrite")
    assert "nothing to do" in empty(*extract(manifest)).stderr


def test_grown_data_are_taken_in_with_what_the_store_has(empty, tmp_path, manifest, extract, opened):
    """The bare command refuses and says how; --overwrite reuses, and opens what is new; so does --reuse elsewhere."""
    empty.succeeds(*extract(manifest))
    rows = manifest.read_text().splitlines()[2:]  # two removed, one of another caption, two new
    rows[4] = rows[4].replace("picture 6", "another caption")
    for number in (40, 41):
        write_picture(tmp_path / "photos" / f"{number}.png", number)
        rows.append(json.dumps({"image": f"photos/{number}.png", "captions": [f"picture {number}"]}))
    manifest.write_text("\n".join(rows))
    assert "give --overwrite to replace a store: latents of what has not changed are reused" in empty.fails(
        2, *extract(manifest)
    )
    elsewhere = [*extract(manifest)[:3], tmp_path / "new.h5", *extract(manifest)[4:]]
    said = [" ".join(empty(*elsewhere, "--reuse", tmp_path / "s.h5").stderr.split())]
    opened.clear()
    said.append(" ".join(empty(*extract(manifest), "--overwrite").stderr.split()))
    assert opened == ["40.png", "41.png"]
    for words in said:
        assert f"reused from {tmp_path / 's.h5'}: 38 of 40 pictures, 37 of 40 captions; encoded: 2 and 3" in words
    stores = [open_store(tmp_path / name) for name in ("s.h5", "new.h5")]
    assert stores[0].content_hash == stores[1].content_hash
    assert stores[0].image_id == [f"photos/{number:02d}.png" for number in range(2, 42)]
    assert "nothing to do" in empty(*extract(manifest)).stderr
    empty.succeeds(*extract(manifest), "--overwrite", "--reuse", "none")
    assert "reused" not in open_store(tmp_path / "s.h5").made_by
    assert "none of its latents can be reused" in empty.fails(
        4, *elsewhere, "--overwrite", "--reuse", tmp_path / "s.h5", "--image-pooling", "mean", "--text-pooling", "cls"
    )


@pytest.mark.slow
def test_python_reuses_too(tmp_path, manifest, tiny_encoders):
    words = iter(tiny_encoders)
    settings = {flag.removeprefix("--"): value for flag, value in zip(words, words, strict=True)}
    there, elsewhere = tmp_path / "s.h5", tmp_path / "new.h5"
    first = alignvl_cli.extract(manifest, output=there, **settings)
    again = alignvl_cli.extract(manifest, output=there, overwrite=True, **settings)
    copied = alignvl_cli.extract(manifest, output=elsewhere, reuse=there, **settings)
    assert [one.made_by["reused"]["pictures"] for one in (again, copied)] == [40, 40]
    anew = alignvl_cli.extract(manifest, output=there, overwrite=True, reuse="none", **settings)
    assert "reused" not in anew.made_by
    assert len({one.content_hash for one in (first, again, copied, anew)}) == 1


@pytest.mark.slow
def test_a_folder_mounted_later_is_never_passed_over(empty, tmp_path, manifest, extract):
    away = [tmp_path / "photos" / f"{number:02d}.png" for number in range(20)]
    for path in away:
        path.rename(path.with_suffix(".away"))
    first = empty(*extract(manifest))
    again = empty(*extract(manifest))
    assert (first.exit_code, again.exit_code) == (6, 6), "the store has as many rejected images as before"
    assert first.stdout == again.stdout == f"{tmp_path / 's.h5'}\n"
    assert "20 of 40 images were rejected" in " ".join(again.stderr.split())
    for path in away:
        path.with_suffix(".away").rename(path)
    said = empty.fails(4, *extract(manifest))
    assert "20 of 40 pictures could not be read then and can be now (photos/00.png, photos/01.png, " in said
    empty.succeeds(*extract(manifest), "--overwrite")
    assert len(open_store(tmp_path / "s.h5").image_id) == 40


@pytest.mark.slow
def test_damaged_pictures_stay_damaged_until_they_are_repaired(empty, tmp_path, manifest, extract):
    sound = (tmp_path / "photos" / "03.png").read_bytes()
    (tmp_path / "photos" / "03.png").write_bytes(sound[:60])
    empty.succeeds(*extract(manifest))
    assert "nothing to do" in empty(*extract(manifest)).stderr
    (tmp_path / "photos" / "03.png").write_bytes(sound)
    assert "can be now (photos/03.png)" in empty.fails(4, *extract(manifest))


def test_pictures_that_are_gone_are_said_and_the_store_keeps_them(empty, tmp_path, manifest, extract):
    empty.succeeds(*extract(manifest))
    (tmp_path / "photos" / "05.png").unlink()
    again = empty(*extract(manifest))
    assert (again.exit_code, again.stdout) == (0, f"{tmp_path / 's.h5'}\n")
    assert "1 of 40 pictures cannot be read (moved?" in " ".join(again.stderr.split())
    shutil.rmtree(tmp_path / "photos")
    again = empty(*extract(manifest))
    assert (again.exit_code, again.stdout) == (0, f"{tmp_path / 's.h5'}\n")
    assert "40 of 40 pictures cannot be read (moved? --image-root)" in " ".join(again.stderr.split())


@pytest.mark.slow
def test_a_tar_packed_anew_or_another_one_is_not_the_store_of_the_first(empty, tmp_path, extract):
    def pack(path, first):
        with tarfile.open(path, "w") as archive:
            for number in range(6):
                picture = io.BytesIO()
                Image.new("RGB", (20, 20), (first + number, 9, 9)).save(picture, "BMP")  # all of one size
                for name, data in ((f"{number}.bmp", picture.getvalue()), (f"{number}.txt", b"a picture")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        return path

    empty.succeeds(*extract(pack(tmp_path / "one.tar", 0)))
    pack(tmp_path / "one.tar", 100)
    assert "6 of 6 pictures have changed" in empty.fails(4, *extract(tmp_path / "one.tar"))
    two = pack(tmp_path / "two.tar", 50)
    assert "6 of 6 pictures have changed" in empty.fails(4, *extract(two))
    empty.succeeds(*extract(tmp_path / "one.tar"), "--overwrite")
    shutil.copystat(tmp_path / "one.tar", two)
    assert two.stat().st_size == (tmp_path / "one.tar").stat().st_size
    assert "6 of 6 pictures have changed" in empty.fails(4, *extract(two)), "the record is of the files of one.tar"
