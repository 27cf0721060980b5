"""What a crash costs an extraction: python benchmarks/kill_extraction.py [KILLS [SEED]]

Kills an extraction (fake encoders, 300 picture files, 15 shards) at random moments with SIGKILL and gives
the same command again, as often as asked; a store that is complete before its kill comes is followed by
another. Fails unless every store ends equal to an undisturbed one in every byte of its datasets, no shard
that was finished is begun again, and nothing is left beside the stores. Prints the counts.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.killable import BEGUN, Killable, kill
from support.stored import differing, stored_datasets

LONGEST = 0.6
"""Seconds from the beginning of the work to a kill, at most: some tenths of what an undisturbed run takes."""


class Disturbed:
    """One store on its way, through however many processes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.work = Killable(folder, images=300, image_delay=0.004, text_delay=0.002)
        self.partial = folder / f"{self.work.store}.partial"
        self.finished: set[str] = set()
        self.begun = 0

    def kill_after(self, seconds: float) -> str | None:
        """How far the killed process had come; None when it was done before."""
        process = self.work.start()
        assert process.stdout is not None
        assert process.stdout.readline().strip() == BEGUN
        time.sleep(seconds)
        if process.poll() is None:
            kill(process)
        else:
            assert process.returncode == 0
            process.stdout.close()
        self._check_shards()
        if not self.partial.exists():
            return None
        if self.work.output.exists():
            return "store in place, work folder too"
        stages = {name.split("-")[0] for name in self.finished}
        return "in the texts or the store" if "texts" in stages else "in the images"

    def end(self) -> None:
        """The same command once more, undisturbed."""
        subprocess.run(self.work.command(), check=True, stdout=subprocess.DEVNULL)
        self._check_shards()
        left = [path.name for path in self.work.folder.iterdir() if self.work.store in path.name]
        assert left == [self.work.store], f"left behind: {left}"

    def _check_shards(self) -> None:
        """No shard that was finished before this process began was begun by it."""
        journal = self.work.journal("shards")
        again = self.finished & set(journal[self.begun :])
        assert not again, f"done again: {sorted(again)}"
        self.begun = len(journal)
        # A shard's record, written after its latents, completes it.
        self.finished |= {path.stem for path in self.partial.glob("[!.]*-*.json")}


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    chance = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    met: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        undisturbed = Disturbed(Path(name, "undisturbed"))
        undisturbed.end()
        wanted = stored_datasets(undisturbed.work.output)
        stores: list[Disturbed] = []
        while met.total() < kills:
            if not stores or stores[-1].work.output.exists():
                stores.append(Disturbed(Path(name, f"store-{len(stores)}")))
            where = stores[-1].kill_after(chance.uniform(0, LONGEST))
            met.update([where] if where else [])
        for store in stores:
            store.end()
            differ = differing(stored_datasets(store.work.output), wanted)
            assert not differ, f"not as undisturbed: {differ}"
        repeated = sum(store.begun for store in stores) - len(stores) * undisturbed.begun
    places = ", ".join(f"{count} {where}" for where, count in sorted(met.items()))
    print(
        f"{kills} kills ({places}): {len(stores)} stores, {len(wanted)} datasets each, all equal to the undisturbed; "
        f"0 finished shards done again, {repeated} of {len(stores) * undisturbed.begun} begun twice by a cut write"
    )


if __name__ == "__main__":
    main()
