"""What tells near duplicates for a search: the rule of the data check, on pictures as they are now."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignvl_cli.datasets.check import near_groups, signature_of
from alignvl_cli.datasets.lookalikes import Lookalikes, Looks
from alignvl_cli.encoders.decoding import decode_image


def picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((120, 120), Image.Resampling.BICUBIC)


def saved(path: Path, image: Image.Image, **how) -> tuple[str, str]:
    image.save(path, **how)
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_picture_saved_again_or_scaled_looks_alike_and_another_one_does_not(tmp_path):
    look = Lookalikes(decode_image)
    one = look(*saved(tmp_path / "one.png", picture(0)))
    assert one.resembles(look(*saved(tmp_path / "again.jpg", picture(0), quality=70)))
    assert one.resembles(look(*saved(tmp_path / "half.png", picture(0).resize((60, 60)))))
    assert not one.resembles(look(*saved(tmp_path / "other.png", picture(1))))
    blue = Image.merge("RGB", picture(0).split()[::-1])
    assert not one.resembles(look(*saved(tmp_path / "blue.png", blue)))


@pytest.mark.parametrize("changed", [6, 7])
def test_the_limits_are_those_of_the_data_check(changed):
    """Bit for bit and shade for shade, `near_groups` and `resembles` say the same."""
    signature = signature_of(picture(0))
    other = int.from_bytes(signature[:8], "big") ^ ((1 << changed) - 1)
    for shade in (12, 13):
        colours = [value + shade if value < 128 else value - shade for value in signature[8:]]
        pair = [signature, other.to_bytes(8, "big") + bytes(colours)]
        is_alike = changed == 6 and shade == 12
        assert bool(near_groups(pair)) == is_alike
        assert Looks.of(pair[0]).resembles(Looks.of(pair[1])) == is_alike


def test_a_plain_picture_has_no_looks_and_one_that_is_not_as_indexed_is_told(tmp_path):
    look = Lookalikes(decode_image)
    plain = saved(tmp_path / "plain.png", Image.new("RGB", (40, 40), "red"))
    gone, replaced = saved(tmp_path / "gone.png", picture(0)), saved(tmp_path / "replaced.png", picture(1))
    broken = saved(tmp_path / "broken.png", picture(2))
    (tmp_path / "gone.png").unlink()
    saved(tmp_path / "replaced.png", picture(2))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = broken[0], hashlib.sha256(b"no picture").hexdigest()
    assert [look(*one) for one in (plain, gone, replaced, broken)] == [None] * 4
    assert look.unseen([plain[0]]) == ""
    assert look.unseen([plain[0], gone[0]]).startswith("1 picture found is not at hand")
    assert look.unseen([gone[0], replaced[0], broken[0]]).startswith("3 pictures found are not at hand")
    saved(tmp_path / "gone.png", picture(0))
    assert look(*gone) is not None
    assert look.unseen([gone[0]]) == ""
