"""Preprocessing equals transformers' own image processor bit for bit, and travels to worker processes."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import tiny_models
import transformers
from PIL import Image

from alignvl_cli.encoders.folders import Side, find_model
from alignvl_cli.encoders.pixels import ProcessorCall, ResizeCrop
from alignvl_cli.encoders.processors import load_processor, preprocess_of, processor_record
from alignvl_cli.errors import DataError, UsageError

SIZES = [(1, 1), (64, 64), (65, 64), (33, 90), (100, 37), (500, 333), (21, 2000)]

FAST = {
    "clip": transformers.CLIPImageProcessorPil(),
    "clip, odd crop": transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 75}, crop_size={"height": 70, "width": 33}
    ),
    "dinov2": transformers.BitImageProcessorPil(size={"shortest_edge": 256}),
    "vit": transformers.ViTImageProcessorPil(),
    "siglip, lanczos": transformers.SiglipImageProcessorPil(size={"height": 40, "width": 30}, resample=1),
    "deit": transformers.DeiTImageProcessorPil(),
    "no normalisation": transformers.ViTImageProcessorPil(do_normalize=False),
    "no rescaling": transformers.ViTImageProcessorPil(do_rescale=False, do_normalize=False),
    "efficientnet": transformers.EfficientNetImageProcessorPil(size={"height": 64, "width": 64}, rescale_offset=True),
}
OWN_STEPS = {
    "convnext crops by percentage": transformers.ConvNextImageProcessorPil(size={"shortest_edge": 64}),
    "crop larger than the picture": transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}),
}


def picture(width, height):
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", FAST | OWN_STEPS)
def test_equal_to_the_processor_bit_for_bit(name, size):
    processor = (FAST | OWN_STEPS)[name]
    expected = processor(images=picture(*size), return_tensors="np")["pixel_values"][0].astype(np.float32)
    got = preprocess_of(processor, name)(picture(*size))
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert np.array_equal(got, expected)
    if size != (1, 1):
        assert got.std() > 0


def test_plain_processors_take_the_short_way_and_others_their_own():
    assert {type(preprocess_of(processor, name)) for name, processor in FAST.items()} == {ResizeCrop}
    assert {type(preprocess_of(processor, name)) for name, processor in OWN_STEPS.items()} == {ProcessorCall}


@pytest.mark.parametrize("name", ["clip", "convnext crops by percentage"])
def test_pickled_it_does_the_same(name):
    preprocess = preprocess_of((FAST | OWN_STEPS)[name], name)
    again = pickle.loads(pickle.dumps(preprocess))
    assert np.array_equal(again(picture(50, 70)), preprocess(picture(50, 70)))


def test_workers_need_neither_torch_nor_transformers(tmp_path):
    """Decoding and the short way load Pillow and numpy alone, so worker processes start in a fraction of a second."""
    (tmp_path / "p.pickle").write_bytes(pickle.dumps(preprocess_of(FAST["clip"], "clip")))
    picture(50, 70).save(tmp_path / "p.png")
    code = (
        "import pickle, sys; from pathlib import Path; from alignvl_cli.encoders.images import decode_image\n"
        "folder = Path(sys.argv[1]); preprocess = pickle.loads((folder / 'p.pickle').read_bytes())\n"
        "print(preprocess(decode_image((folder / 'p.png').read_bytes(), 10**6)).shape)\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(3, 224, 224)", "[]"]


def test_shapes_that_follow_the_picture_are_refused():
    with pytest.raises(UsageError, match="fixed size"):
        preprocess_of(transformers.CLIPImageProcessorPil(do_center_crop=False), "some/model")
    with pytest.raises(UsageError, match="fixed size"):
        preprocess_of(transformers.Siglip2ImageProcessorPil(), "some/model")


def test_record_holds_what_decides_a_pixel_and_nothing_else():
    record = processor_record(FAST["vit"])
    assert record == {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    changed = processor_record(transformers.ViTImageProcessorPil(size={"height": 225, "width": 224}))
    assert changed != record
    switched_off = processor_record(transformers.ViTImageProcessorPil(crop_size={"height": 9, "width": 9}))
    assert switched_off == record  # no crop is made


def test_record_survives_saving_and_loading(tmp_path):
    folder = tiny_models.save_dinov2(tmp_path / "m")
    processor = load_processor(find_model(str(folder), Side.vision))
    processor.save_pretrained(tmp_path / "again")
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path / "again", backend="pil")
    assert processor_record(again) == processor_record(processor)
    assert processor_record(processor)["crop_size"] == {"height": 32, "width": 32}


def test_a_broken_processor_file_is_a_data_error(tmp_path):
    folder = tiny_models.save_dinov2(tmp_path / "m")
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchProcessor"}')
    with pytest.raises(DataError, match="image processor cannot be loaded"):
        load_processor(find_model(str(folder), Side.vision))


def test_a_processor_whose_library_is_missing_says_which(tmp_path, monkeypatch):
    folder = tiny_models.save_dinov2(tmp_path / "m")

    def needs_torchvision(*path, **options):
        raise ImportError("requires the Torchvision library")

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", needs_torchvision)
    with pytest.raises(DataError, match="pip install torchvision"):
        load_processor(find_model(str(folder), Side.vision))


def test_an_upper_limit_on_the_size_is_left_to_the_processor():
    processor = transformers.ViTImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 32})
    square = preprocess_of(transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}), "m")
    with pytest.raises(UsageError, match="fixed size"):
        preprocess_of(processor, "m")
    assert square(picture(50, 50)).shape == (3, 32, 32)


def test_padding_is_left_to_the_processor():
    processor = transformers.ViTImageProcessorPil(
        size={"height": 30, "width": 30}, do_pad=True, pad_size={"height": 32, "width": 32}
    )
    preprocess = preprocess_of(processor, "m")
    assert isinstance(preprocess, ProcessorCall)
    assert preprocess(picture(50, 70)).shape == (3, 32, 32)
