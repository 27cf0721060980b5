"""Preprocessing equals transformers' own image processor bit for bit, and travels to worker processes."""

import pickle
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import tiny_models

from alignvl_cli.encoders.decoding import UnreadableImage
from alignvl_cli.encoders.folders import Side, find_model
from alignvl_cli.encoders.pixels import MOST_RESIZED, ProcessorCall, ResizeCrop, resized_window
from alignvl_cli.encoders.preprocessing import load_processor, preprocess_of, processor_record
from alignvl_cli.encoders.vision import values_of
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
    "convnext crops by percentage": transformers.ConvNextImageProcessorPil(size={"shortest_edge": 64}),
    "convnext of old": transformers.ConvNextImageProcessorPil(size={"shortest_edge": 65}, crop_pct=0.9),
    "convnext squeezes large sizes": transformers.ConvNextImageProcessorPil(size={"shortest_edge": 384}),
}
OWN_STEPS = {
    "crop larger than the picture": transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}),
}


def picture(width, height):
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def values(preprocess, *pictures, dtype=torch.float32, layout=torch.contiguous_format):
    return values_of(preprocess, "cpu", dtype, layout)(np.stack([preprocess(one) for one in pictures]))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", FAST | OWN_STEPS)
def test_equal_to_the_processor_bit_for_bit(name, size):
    processor = (FAST | OWN_STEPS)[name]
    expected = processor(images=picture(*size), return_tensors="np")["pixel_values"][0].astype(np.float32)
    got = values(preprocess_of(processor, name), picture(*size))
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert np.array_equal(got.numpy()[0], expected)
    if size != (1, 1):
        assert got.std() > 0


@pytest.mark.parametrize("name", ["clip", "crop larger than the picture"])
def test_batches_are_looked_up_as_single_pictures_are_then_rounded_once(name):
    preprocess = preprocess_of((FAST | OWN_STEPS)[name], name)
    pictures = [picture(50, 70), picture(90, 60), picture(64, 64)]
    single = torch.cat([values(preprocess, one) for one in pictures])
    for layout in (torch.contiguous_format, torch.channels_last):
        batch = values(preprocess, *pictures, dtype=torch.bfloat16, layout=layout)
        assert batch.is_contiguous(memory_format=layout)
        assert torch.equal(batch, single.to(torch.bfloat16))


def test_plain_processors_take_the_short_way_and_others_their_own():
    assert {type(preprocess_of(processor, name)) for name, processor in FAST.items()} == {ResizeCrop}
    assert {type(preprocess_of(processor, name)) for name, processor in OWN_STEPS.items()} == {ProcessorCall}


@pytest.mark.parametrize("name", ["clip", "crop larger than the picture"])
def test_pickled_it_does_the_same(name):
    preprocess = preprocess_of((FAST | OWN_STEPS)[name], name)
    again = pickle.loads(pickle.dumps(preprocess))
    assert np.array_equal(again(picture(50, 70)), preprocess(picture(50, 70)))


def test_workers_need_neither_torch_nor_transformers(tmp_path):
    """Decoding and the short way load Pillow and numpy alone, so worker processes start in a fraction of a second."""
    (tmp_path / "p.pickle").write_bytes(pickle.dumps(preprocess_of(FAST["clip"], "clip")))
    picture(50, 70).save(tmp_path / "p.png")
    code = (
        "import pickle, sys; from pathlib import Path; from alignvl_cli.encoders.decoding import decode_image\n"
        "folder = Path(sys.argv[1]); preprocess = pickle.loads((folder / 'p.pickle').read_bytes())\n"
        "print(preprocess(decode_image((folder / 'p.png').read_bytes(), 10**6)).shape)\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(224, 224, 3)", "[]"]


SUMS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.HAMMING)
"""NEAREST and BOX may take either neighbour of a place halfway between two."""


def smooth(width, height):
    """Waves along both axes: neighbours differ, and places that are a little off show."""
    x_W, y_H = np.arange(width), np.arange(height)
    waves = [np.sin(x_W / (7 + c))[None, :] + np.cos(y_H / (5 + c))[:, None] for c in range(3)]
    return Image.fromarray((128 + 60 * np.stack(waves, axis=-1)).astype(np.uint8))


@pytest.mark.parametrize("resample", SUMS, ids=lambda value: value.name)
@pytest.mark.parametrize(
    "size", [(64, 64), (65, 64), (33, 900), (1000, 37), (3, 3000), (3000, 3), (1, 5000), (41, 40_000)], ids=str
)
def test_the_window_of_a_resized_picture_is_the_cut_of_the_whole(size, resample):
    """The way of long pictures against resizing all of them, where that still fits."""
    width, height = size
    shorter = 72
    resized = (int(shorter * width / height), shorter) if width > height else (shorter, int(shorter * height / width))
    left, top = (resized[0] - 64) // 2, (resized[1] - 60) // 2
    window = (left, top, left + 64, top + 60)
    whole = np.asarray(smooth(*size).resize(resized, resample).crop(window)).astype(int)
    part = np.asarray(resized_window(smooth(*size), resized, resample, window)).astype(int)
    assert part.shape == (60, 64, 3)
    assert np.abs(part - whole).max() <= 2, "each of two passes rounds to whole values"
    assert np.abs(part - whole).mean() <= 0.15, "sums halfway between two values may fall to either"


@pytest.mark.parametrize("upright", [True, False])
def test_long_strips_become_what_their_middle_shows(upright):
    """A strip whose whole resize is refused for memory: its centre is made alone, in the colours that stand there."""
    strip = Image.new("RGB", (3, 120_000), "red")
    strip.paste((0, 128, 255), (0, 59_998, 3, 60_002))
    assert preprocess_of(FAST["no rescaling"], "vit")(strip).shape == (224, 224, 3)  # squeezed whole
    clip = preprocess_of(transformers.CLIPImageProcessorPil(do_rescale=False, do_normalize=False), "clip")
    assert MOST_RESIZED < 224 * 224 * 40_000
    pixels = clip(strip if upright else strip.transpose(Image.Transpose.ROTATE_90))
    assert pixels.shape == (224, 224, 3)
    assert pixels[112, 112].tolist() == [0, 128, 255]


def test_memory_follows_the_crop_and_not_the_length():
    clip = preprocess_of(FAST["clip"], "clip")
    clip(Image.new("RGB", (3, 3000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    long = Image.new("RGB", (1, 2_000_000), "white")  # resized whole: 224 x 448,000,000 pixels
    assert (clip(long) == 255).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "KiB"


def test_processors_with_steps_of_their_own_are_not_given_endless_strips():
    own = preprocess_of(OWN_STEPS["crop larger than the picture"], "m")
    assert own(picture(600, 3)).shape == (3, 224, 224)
    with pytest.raises(UnreadableImage, match="3000 x 3 pixels: more than 200 times as long as wide"):
        own(picture(3000, 3))


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
    with pytest.raises(DataError, match="torchvision that is built for torch"):
        load_processor(find_model(str(folder), Side.vision))


def test_an_upper_limit_on_the_size_is_left_to_the_processor():
    processor = transformers.ViTImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 32})
    square = preprocess_of(transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}), "m")
    with pytest.raises(UsageError, match="fixed size"):
        preprocess_of(processor, "m")
    assert square(picture(50, 50)).shape == (32, 32, 3)


def test_padding_is_left_to_the_processor():
    processor = transformers.ViTImageProcessorPil(
        size={"height": 30, "width": 30}, do_pad=True, pad_size={"height": 32, "width": 32}
    )
    preprocess = preprocess_of(processor, "m")
    assert isinstance(preprocess, ProcessorCall)
    assert preprocess(picture(50, 70)).shape == (3, 32, 32)


STRANGE = ("do_rezise", "interpolation", "gamma", "crop_pct", "mean", "do_flip_channel_order", "keep_aspect_ratio")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_each_setting_of_a_processors_file_is_honoured_as_transformers_does_or_refused_by_name(tmp_path, data):
    name = data.draw(st.sampled_from(["CLIP", "ViT", "Siglip", "ConvNext", "EfficientNet"]))
    known = {
        "resample": st.sampled_from([0, 1, 2, 3]),
        "image_mean": st.lists(st.floats(0, 1), min_size=3, max_size=3),
        "do_normalize": st.booleans(),
        "do_rescale": st.booleans(),
        "do_resize": st.booleans(),
        "do_center_crop": st.booleans(),
        "crop_size": st.just({"height": 28, "width": 30}),
        "size": st.sampled_from([{"height": 32, "width": 40}, {"shortest_edge": 33}, 36, [36, 36]]),
        "rescale_factor": st.sampled_from([1 / 255, 0.5]),
        **{key: st.sampled_from([None, False, 0.9, True]) for key in STRANGE},
    }
    stated = data.draw(st.fixed_dictionaries({}, optional=known))
    folder = tmp_path / "m"
    if not folder.is_dir():
        tiny_models.save_vit(folder)
    written = {"image_processor_type": f"{name}ImageProcessor", **stated}
    tiny_models.write_json(folder / "preprocessor_config.json", written)
    found = find_model(str(folder), Side.vision)
    taken = getattr(transformers, f"{name}ImageProcessorPil").valid_kwargs.__annotations__
    strangers = [key for key in STRANGE if stated.get(key) not in (None, False) and key not in taken]
    if strangers:
        with pytest.raises(DataError, match=".*".join(sorted(strangers))):
            load_processor(found)
        return
    theirs = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    sizes = [(50, 70), (90, 41)]
    try:
        made = [theirs(images=picture(*size), return_tensors="np")["pixel_values"][0] for size in sizes]
    except (ValueError, TypeError, AttributeError):  # settings that transformers does not carry out
        made = []
    if not made or made[0].shape != made[1].shape:
        with pytest.raises((DataError, UsageError), match="image processor"):
            preprocess_of(load_processor(found), "m")
        return
    preprocess = preprocess_of(load_processor(found), "m")
    for size, expected in zip(sizes, made, strict=True):
        expected = expected.astype(np.float32)
        assert np.array_equal(values(preprocess, picture(*size)).numpy()[0], expected)


def test_a_processor_without_the_switches_of_others_is_called_as_it_is():
    class Halves(transformers.BaseImageProcessor):
        """Of another make: no do_resize, no size."""

        def __init__(self):
            pass

        def __call__(self, images, return_tensors):
            small = np.asarray(images.resize((8, 8)), np.float32) / 2
            return {"pixel_values": small.transpose(2, 0, 1)[None]}

    preprocess = preprocess_of(Halves(), "m")
    assert isinstance(preprocess, ProcessorCall)
    assert preprocess(picture(50, 70)).shape == (3, 8, 8)


def test_a_step_that_the_short_way_does_not_know_of_shows_in_its_pixels():
    class Brighter(transformers.ViTImageProcessorPil):
        def normalize(self, image, *args, **kwargs):
            return super().normalize(image, *args, **kwargs) + image.mean()

    assert isinstance(preprocess_of(Brighter(), "m"), ProcessorCall)
