"""Random streams: separate by name, restorable, and nothing to do with the global generator."""

import pytest
import torch

from alignvl_cli.align import adapters as dropout_module
from alignvl_cli.align.adapters import StreamDropout
from alignvl_cli.align.streams import Stream, Streams, stream_seed


def test_streams_of_a_seed_are_distinct_and_repeatable():
    first = {stream: torch.rand(4, generator=Streams(3)[stream]) for stream in Stream}
    again = Streams(3)
    draws = torch.stack([torch.rand(4, generator=again[stream]) for stream in Stream])
    assert torch.equal(draws, torch.stack(list(first.values())))
    assert len({tuple(row.tolist()) for row in draws}) == len(Stream)
    assert stream_seed(3, "permutation") != stream_seed(4, "permutation")


def test_drawing_from_one_stream_leaves_the_others_where_they_were():
    drawn, fresh = Streams(0), Streams(0)
    torch.rand(1000, generator=drawn[Stream.partners])
    expected = torch.rand(5, generator=fresh[Stream.noise_text])
    assert torch.equal(torch.rand(5, generator=drawn[Stream.noise_text]), expected)


def test_states_take_up_where_they_were_taken():
    streams = Streams(1)
    torch.rand(7, generator=streams[Stream.dropout_image])
    states = streams.states()
    ahead = torch.rand(5, generator=streams[Stream.dropout_image])
    other = Streams(2)
    other.restore(states)
    assert torch.equal(torch.rand(5, generator=other[Stream.dropout_image]), ahead)


@pytest.fixture(params=["as elsewhere", "as on MPS"])
def words(request, monkeypatch):
    """What a draw is: 64 bits, or the 32 that MPS has."""
    if request.param == "as on MPS":
        monkeypatch.setattr(dropout_module, "WORD", dropout_module.MPS_WORD)


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize(("p", "share"), [(0.6, 154 / 256), (0.25, 0.25), (0.999, 255 / 256), (0.003, 1 / 256)])
def test_dropout_has_the_stated_probability_mean_and_variance(p, share):
    dropout = StreamDropout(p)
    dropout.generator = torch.Generator().manual_seed(0)
    dropped = dropout(torch.ones(1001, 403)).double()
    entries = dropped.numel()
    variance = share / (1 - share)  # of a Bernoulli(1 - share) over 1 - share
    assert abs((dropped == 0).double().mean().item() - share) < 4 * (share * (1 - share) / entries) ** 0.5
    assert abs(dropped.mean().item() - 1) < 4 * (variance / entries) ** 0.5
    assert dropped.var().item() == pytest.approx(variance, rel=0.07)
    assert len(dropped.unique()) == 2
    assert dropped.max().item() == pytest.approx(1 / (1 - share), rel=1e-6)
    assert not torch.equal(dropout(torch.ones(1001, 403)), dropped.float())


@pytest.mark.usefixtures("words")
def test_dropout_of_neighbouring_entries_is_independent():
    dropout = StreamDropout(0.5)
    dropout.generator = torch.Generator().manual_seed(3)
    kept = (dropout(torch.ones(800_000)) > 0).double() - 0.5
    for apart in range(1, 17):  # eight entries share a draw
        assert abs((kept[:-apart] * kept[apart:]).mean().item()) < 4 * 0.25 / 800_000**0.5


def test_dropout_is_the_identity_in_evaluation_and_at_zero():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(StreamDropout(0.5).eval()(x), x)
    assert torch.equal(StreamDropout(0.0)(x), x)


def test_dropout_gradient_is_the_mask():
    dropout = StreamDropout(0.25)
    dropout.generator = torch.Generator().manual_seed(2)
    x = torch.ones(50, 40, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
