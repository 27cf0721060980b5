"""Random streams: separate by name, restorable, and nothing to do with the global generator."""

import torch

from alignvl_cli.align.dropout import StreamDropout
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


def test_dropout_keeps_the_expectation_and_drops_the_share():
    dropout = StreamDropout(0.6)
    dropout.generator = torch.Generator().manual_seed(0)
    dropped = dropout(torch.ones(501, 403))
    assert abs((dropped == 0).float().mean().item() - 0.6) < 0.005
    assert abs(dropped.mean().item() - 1) < 0.01
    assert len(dropped.unique()) == 2
    assert not torch.equal(dropout(torch.ones(501, 403)), dropped)


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
