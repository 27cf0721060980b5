"""An extraction with the fakes in a process of its own, which may be killed at any moment.

Its folder gets `data/` (the pictures), STORE, and three journals, a line each: `images.log` and
`texts.log` (what was encoded), `shards.log` (a shard that is about to be written).
"""

import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from alignvl_cli.datasets.dataset import Dataset
from alignvl_cli.distributed import Ranks
from alignvl_cli.extraction.plan import existing_store_matches, make_plan
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.extraction.shards import WorkFolder, remove_leftover
from alignvl_cli.settings import ExtractConfig
from support.fakes import FakeText, FakeVision, make_dataset

CONFIG = ExtractConfig(batch_size=2, workers=0)
IMAGE_SHARD, TEXT_SHARD = 32, 128
"""Of that batch size."""
BEGUN = "begun"
"""The first line of output: the work begins."""


@dataclass(frozen=True)
class Killable:
    folder: Path
    store: str = "s.h5"
    images: int = 200
    workers: int = 0
    image_delay: float = 0.02
    """Seconds a batch of two pictures."""
    text_delay: float = 0.01
    rank: int = 0
    ranks: int = 1
    reuse: str = ""
    """Name of an older store in the folder."""

    @property
    def output(self) -> Path:
        return self.folder / self.store

    def dataset(self) -> Dataset:
        return make_dataset(self.folder / "data", images=self.images)

    def command(self) -> list[str]:
        return [sys.executable, __file__, *(str(value) for value in asdict(self).values())]

    def start(self) -> "subprocess.Popen[str]":
        """The process; prints BEGUN, then a line an event."""
        return subprocess.Popen(self.command(), stdout=subprocess.PIPE, text=True)

    def journal(self, name: str) -> list[str]:
        path = self.folder / f"{name}.log"
        return path.read_text().splitlines() if path.exists() else []

    def run(self) -> None:
        """What the process does, in the manner of `alignvl extract`."""
        dataset = self.dataset()
        vision = FakeVision(delay=self.image_delay, journal=self.folder / "images.log")
        text = FakeText(delay=self.text_delay, journal=self.folder / "texts.log")
        write_shard = WorkFolder.write_shard

        def told(folder, stage, number, latents, record):
            with open(self.folder / "shards.log", "a") as stream:
                stream.write(f"{stage.value}-{number:06d}\n")
            write_shard(folder, stage, number, latents, record)

        WorkFolder.write_shard = told
        config = ExtractConfig(batch_size=CONFIG.batch_size, workers=self.workers)
        print(BEGUN, flush=True)
        if existing_store_matches(self.output, make_plan(dataset, vision, text, config)):
            remove_leftover(self.output)
            return
        ranks = Ranks(self.rank, self.ranks, self.rank, self.ranks)
        reuse = self.folder / self.reuse if self.reuse else None
        for event in run_extraction(dataset, vision, text, self.output, config, settings={}, ranks=ranks, reuse=reuse):
            print(event, flush=True)


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL, and see that it died of that."""
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()


if __name__ == "__main__":
    place, name, images, workers, image_delay, text_delay, rank, ranks, reuse = sys.argv[1:]
    Killable(
        *(Path(place), name, int(images), int(workers), float(image_delay), float(text_delay)),
        *(int(rank), int(ranks), reuse),
    ).run()
