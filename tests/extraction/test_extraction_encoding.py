"""The pool returns what the encoder returns, holds no more than it may, and leaves torch as it found it."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny_models

from alignvl_cli.devices import computing_with
from alignvl_cli.encoders.vision import load_vision
from alignvl_cli.extraction.encoding import encoding_pool
from alignvl_cli.settings import Precision

WAIT_SECONDS = 20


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_latents_are_those_of_the_encoder_bit_for_bit(tmp_path, device, threads):
    folder = tiny_models.save_dinov2(tmp_path / "m")
    encoder = load_vision(str(folder), pooling=None, device="cpu", precision=Precision.fp32)
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(30)]
    batches = [np.stack([encoder.prepare(one) for one in pictures[first : first + 4]]) for first in range(0, 30, 4)]
    with computing_with(threads):
        expected = [encoder.encode(batch) for batch in batches]
        with encoding_pool(encoder.encode, device) as pool:
            futures = [pool.submit(batch) for batch in batches]
            got = [future.result() for future in futures]
        assert torch.get_num_threads() == threads
    assert len({one.tobytes() for one in got}) == len(batches)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=0 if threads == 1 else 1e-6)


@pytest.mark.parametrize(
    ("device", "threads", "batches", "each"), [("cpu", 1, 1, 1), ("cpu", 2, 2, 1), ("cpu", 5, 2, 2), ("cuda", 4, 1, 4)]
)
def test_the_threads_are_shared_and_waiting_batches_are_few(device, threads, batches, each):
    """As many batches are under way as run at once, one more waits, and the next `submit` does too."""
    go_on = threading.Event()
    begun = threading.Semaphore(0)
    counts = []

    def encode(batch):
        counts.append(torch.get_num_threads())
        begun.release()
        assert go_on.wait(WAIT_SECONDS)
        return batch + 1

    submitted = []
    with computing_with(threads), encoding_pool(encode, device) as open_ones:

        def submit():
            for number in range(batches + 3):
                submitted.append(open_ones.submit(np.array([number])))

        feeder = threading.Thread(target=submit)
        feeder.start()
        for _ in range(batches):
            assert begun.acquire(timeout=WAIT_SECONDS)
        feeder.join(0.2)
        assert len(submitted) == batches + 1
        assert not begun.acquire(timeout=0.1)
        go_on.set()
        feeder.join(WAIT_SECONDS)
        assert [int(future.result()[0]) for future in submitted] == list(range(1, batches + 4))
    assert set(counts) == {each}


def test_an_error_reaches_the_one_who_submits_and_nothing_is_begun_after_it():
    seen = []

    def encode(batch):
        seen.append(int(batch[0]))
        raise ValueError("too large")

    def submit_all():
        with computing_with(1), encoding_pool(encode, "cpu") as pool:
            for number in range(100):
                pool.submit(np.array([number]))

    with pytest.raises(ValueError, match="too large"):
        submit_all()
    assert len(seen) < 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encoding")]
