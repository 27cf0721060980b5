import json

import pytest

from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import DatasetFormat, DatasetOptions

DEFAULT = DatasetOptions()


def opened(path, document, **options):
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return open_dataset(str(path), DatasetOptions(**options))


def karpathy_image(name, *captions, **more):
    return {
        "filename": name,
        "sentences": [{"raw": caption, "tokens": caption.split()} for caption in captions],
        **more,
    }


def test_karpathy_joins_folder_and_name_and_reads_restval_as_train(tmp_path):
    (tmp_path / "images").mkdir()
    images = [
        karpathy_image("a.jpg", "one", "two", filepath="val2014", split="restval", cocoid=9),
        karpathy_image("a.jpg", "three", filepath="train2014", split="test"),
        karpathy_image("b.jpg", filepath="train2014", split="val"),
    ]
    dataset = opened(
        tmp_path / "dataset_coco.json", {"dataset": "coco", "images": images}, image_root=tmp_path / "images"
    )
    assert [(item.id, item.captions, item.split) for item in dataset.items] == [
        ("val2014/a.jpg", ("one", "two"), "train"),
        ("train2014/a.jpg", ("three",), "test"),
        ("train2014/b.jpg", (), "val"),
    ]
    assert dataset.items[0].uri == str(dataset.items[0].source.path) == f"{tmp_path}/images/val2014/a.jpg"
    assert dataset.name == "dataset_coco.json"
    assert dataset.record["format"] == "karpathy"


def test_coco_groups_annotations_in_any_order_keeps_bare_images_and_counts_strays(tmp_path):
    document = {
        "annotations": [
            {"image_id": 2, "id": 1, "caption": "second"},
            {"image_id": 1, "id": 2, "caption": "first"},
            {"image_id": 99, "id": 3, "caption": "of nothing"},
            {"image_id": 2, "id": 4, "caption": "second again\0"},
            {"image_id": 2, "id": 5, "caption": "  "},
        ],
        "images": [
            {"id": 1, "file_name": "one.jpg"},
            {"id": 2, "file_name": "two.jpg"},
            {"id": 3, "file_name": "3.jpg"},
        ],
    }
    dataset = opened(tmp_path / "captions_val2017.json", document)
    assert [(item.id, item.captions, item.split) for item in dataset.items] == [
        ("one.jpg", ("first",), None),
        ("two.jpg", ("second", "second again\ufffd"), None),
        ("3.jpg", (), None),
    ]
    assert dataset.notes == ("1 captions are of images that the file does not list, and were left out",)
    assert (dataset.cleaned_captions, dataset.blank_captions) == (1, 1)


COCO_IMAGE = {"id": 1, "file_name": "a.jpg"}
CAPTION = {"image_id": 1, "caption": "x"}
BAD = {
    "not JSON": ("{", "not valid JSON"),
    "a list": ([COCO_IMAGE], "entry 1: no column 'image'"),
    "other keys": ({"rows": []}, r"neither COCO captions .* but 'rows'; .*\.jsonl"),
    "empty object": ({}, "but nothing"),
    "no images": ({"images": [], "annotations": []}, "names no image at all"),
    "no captions": ({"images": [COCO_IMAGE], "annotations": []}, "not one caption for 1 images"),
    "instances": ({"images": [COCO_IMAGE], "annotations": [{"image_id": 1, "bbox": []}]}, "boxes and no caption"),
    "caption of numbers": (
        {"images": [COCO_IMAGE], "annotations": [CAPTION | {"caption": 3}]},
        "annotation 1 has no text",
    ),
    "repeated number": (
        {"images": [COCO_IMAGE, COCO_IMAGE], "annotations": [CAPTION]},
        "image 2 has id 1, which another",
    ),
    "repeated name": (
        {"images": [COCO_IMAGE, COCO_IMAGE | {"id": 2}], "annotations": [CAPTION]},
        "duplicate id 'a.jpg'",
    ),
    "no number": (
        {"images": [{"file_name": "a"}], "annotations": [CAPTION]},
        "image 1 has no number or text under `id`",
    ),
    "no name": ({"images": [{"id": 1}], "annotations": [CAPTION]}, "image 1 has no text under `file_name`"),
    "images no list": ({"images": {}, "annotations": []}, "`images` should be a list of objects"),
    "NUL in a name": ({"images": [karpathy_image("a\0", "x")]}, r"image 1 has 'a\\x00' under `filename`"),
    "no sentences": ({"images": [{"filename": "a"}]}, r"image 1 \('a'\) has no list of objects under `sentences`"),
    "no raw": ({"images": [{"filename": "a", "sentences": [{}]}]}, "a sentence of image 1 has no text under `raw`"),
    "split for some": (
        {"images": [karpathy_image("a", "x", split="train"), karpathy_image("b", "x")]},
        "1 of 2 images have no split",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_annotations_are_one_clear_message(tmp_path, case):
    document, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path / "d.json", document)
    assert "\n" not in str(caught.value)


def test_a_forced_format_must_fit(tmp_path):
    document = {"images": [COCO_IMAGE], "annotations": [CAPTION]}
    assert len(opened(tmp_path / "any.name", document, format=DatasetFormat.coco).items) == 1
    with pytest.raises(DataError, match="--format coco, not of --format karpathy"):
        opened(tmp_path / "d.json", document, format=DatasetFormat.karpathy)


def test_options_without_effect_are_refused(tmp_path):
    document = {"images": [COCO_IMAGE], "annotations": [CAPTION]}
    with pytest.raises(UsageError, match=r"--caption-column has no effect with --format"):
        opened(tmp_path / "d.json", document, caption_column="raw")
    with pytest.raises(DataError, match=r"--image-root .*absent: no such folder"):
        opened(tmp_path / "d.json", document, image_root=tmp_path / "absent")
