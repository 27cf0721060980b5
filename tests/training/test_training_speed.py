"""What a step takes in matrix products, counted against those that torch makes, and its share of a peak."""

import pytest
import torch
from support.fakes import make_store
from torch.utils.flop_counter import FlopCounterMode

from alignvl_cli.align.adapters import AdapterShape, new_pair
from alignvl_cli.align.streams import Streams
from alignvl_cli.recipes import resolve_train
from alignvl_cli.settings import AdapterKind, LatentNorm, Loss, Precision
from alignvl_cli.store.reader import open_store
from alignvl_cli.training import throughput as speed
from alignvl_cli.training.ingredients import epoch_slices
from alignvl_cli.training.loop import take_step
from alignvl_cli.training.prepare import prepare
from alignvl_cli.training.throughput import matmul_peak, peak_of, share_of_peak, step_flops


@pytest.mark.parametrize("adapter", ["fusemix", "linear", "glu"])
def test_the_products_of_a_step_are_those_that_torch_counts(tmp_path, adapter):
    store = open_store(make_store(tmp_path / "s.h5", images=60, dim=12, text_dim=10))
    settings = {
        "adapter": adapter,
        "size": "pairs",
        "latent-norm": "none",
        "init": "random",
        "batch-size": 24,
        "embed-dim": 8,
        "device": "cpu",
    }
    config = resolve_train({**settings, "precision": "fp32"}, pairs=len(store.rows("train").text))
    plan, state, _ = prepare([store], store, config, "cpu")
    slices = next(epoch_slices(plan.gather.data.epoch_order(torch.Generator().manual_seed(0)), 24))
    with FlopCounterMode(display=False) as counted:
        take_step(plan, state, slices)
    # torch's counter sees neither the loss's two products in place nor that `einsum` of two rows is none of a matrix.
    in_place, of_rows = 2 * 2 * 24**2 * 8, 2 * 2 * 24 * 8
    assert counted.get_total_flops() + in_place - of_rows == step_flops(state.adapters, 24)


def test_a_peak_is_sought_with_sides_that_there_is_time_for(monkeypatch):
    """An emulated format, at 4 MFLOP/s: the smallest product takes eight seconds, and no larger one is begun."""
    sides = []
    monkeypatch.setattr(speed, "_square_product", lambda device, precision, side: lambda: sides.append(side))

    def slow(multiply):
        multiply()
        return 2 * sides[-1] ** 3 / 4e6

    monkeypatch.setattr(speed, "_seconds", slow)
    assert matmul_peak("cpu", Precision.bf16, 2048) == pytest.approx(4e6)
    assert sides == [256, 256]
    sides.clear()
    monkeypatch.setattr(speed, "_seconds", lambda multiply: (multiply(), 2 * sides[-1] ** 3 / 1e12)[1])
    assert matmul_peak("cpu", Precision.bf16, 2048) == pytest.approx(1e12)
    assert sides[:5] == [256, 256, 512, 1024, 2048]


def test_a_device_without_room_has_no_peak(monkeypatch):
    def full(*words):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(speed, "matmul_peak", full)
    peak_of.cache_clear()
    assert peak_of("cpu", Precision.fp32, 1) is None
    peak_of.cache_clear()


def test_a_share_is_of_the_peak_that_was_reached():
    assert 1e6 < matmul_peak("cpu", Precision.fp32, 64) < 1e15
    assert share_of_peak(None, 24, 48.0, None) is None
    shape = AdapterShape(
        kind=AdapterKind.linear, image_width=10, text_width=6, depth=1, expansion=1, embed_dim=8, dropout=0.0,
        latent_norm=LatentNorm.none, temperature=None, loss=Loss.infonce, latent_width=None,
    )  # fmt: skip
    adapters = new_pair(shape, Streams(0, "cpu"))
    assert step_flops(adapters, 24) == 4 * 24 * (10 + 6) * 8 + 6 * 24**2 * 8
    assert share_of_peak(adapters, 24, 48.0, 4 * step_flops(adapters, 24)) == pytest.approx(0.5)
    assert share_of_peak(adapters, 24, 48.0, step_flops(adapters, 24)) is None
