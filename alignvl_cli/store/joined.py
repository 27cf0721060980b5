"""Several stores read as one: the rows of one after those of the other, and nothing copied.

An id that several of them have would stand for several images, and gets the name of its store before it:
`photos:0001.jpg`. Every other id stays as it is.
"""

# S stores; I images and T texts of all of them; n rows that are asked for; D and C the widths of their latents.

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np

from alignvl_cli.artifacts import fingerprint
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.store.reader import ALL, SplitRows, Store, split_rows

BEFORE_ID = ":"
"""Between the name of a store and an id of its."""


@dataclass(frozen=True)
class JoinedStore:
    """Open stores, of the same encoders, behind what reads one. Latents are read from the stores when asked for, and
    verified there; the columns of text are held once more."""

    stores: tuple[Store, ...]

    @cached_property
    def content_hash(self) -> str:
        """Identifies the contents of all, in their order."""
        return fingerprint({"joined": [store.content_hash for store in self.stores]})

    @cached_property
    def repeated_ids(self) -> frozenset[str]:
        """What more than one store has for an id."""
        times = Counter(name for store in self.stores for name in store.image_id)
        return frozenset(name for name, stores in times.items() if stores > 1)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the stores: their files', numbered where they are equal, or where an id with one before it is there."""
        names: list[str] = []
        taken = {name for store in self.stores for name in store.image_id}
        for store in self.stores:
            mine = self.repeated_ids.intersection(store.image_id)
            for number in count(1):
                name = store.path.stem + (f"-{number}" if number > 1 else "")
                prefixed = {name + BEFORE_ID + one for one in mine}
                if name not in names and taken.isdisjoint(prefixed):
                    break
            names.append(name)
            taken |= prefixed
        return tuple(names)

    @cached_property
    def image_id(self) -> list[str]:
        """Unique."""
        return [
            f"{name}{BEFORE_ID}{one}" if one in self.repeated_ids else one
            for name, store in zip(self.names, self.stores, strict=True)
            for one in store.image_id
        ]

    @cached_property
    def image_uri(self) -> list[str]:
        return [uri for store in self.stores for uri in store.image_uri]

    @cached_property
    def text_caption(self) -> list[str]:
        return [caption for store in self.stores for caption in store.text_caption]

    @cached_property
    def image_sha256(self) -> np.ndarray:
        """(I, 32) uint8, of the image files' bytes."""
        return np.concatenate([store.image_sha256 for store in self.stores])

    @cached_property
    def text_image(self) -> np.ndarray:
        """(T,) int64 row of each text's image."""
        starts = zip(self.stores, self._image_edges, strict=False)
        return np.concatenate([store.text_image + start for store, start in starts])

    @cached_property
    def split_names(self) -> list[str]:
        return [*dict.fromkeys(name for store in self.stores for name in store.split_names)]

    @cached_property
    def image_split(self) -> np.ndarray:
        """(I,) positions in `split_names`."""
        place = {name: position for position, name in enumerate(self.split_names)}
        codes = (np.array([place[name] for name in store.split_names])[store.image_split] for store in self.stores)
        return np.concatenate([*codes])

    def split_sizes(self) -> dict[str, int]:
        """Images of all stores in each split that has any."""
        sizes: Counter[str] = Counter()
        for store in self.stores:
            sizes.update(store.split_sizes())
        return dict(sizes)

    def rows(self, split: str) -> SplitRows:
        """The rows of `split` in all stores that have it, or of everything for "all"; DataError when none has it."""
        if split == ALL:
            return split_rows(np.ones(len(self.image_split), dtype=bool), self.text_image)
        sizes = self.split_sizes()
        if split not in sizes:
            there = ", ".join(f"{name} ({images} images)" for name, images in sizes.items())
            raise DataError(f"{paths_of(self)}: no image in a split {split!r}; together these stores have {there}")
        return split_rows(self.image_split == self.split_names.index(split), self.text_image)

    def image_block(self, rows: np.ndarray | slice) -> np.ndarray:
        """Image latents of `rows`, contiguous float32 (n, D), verified as those of each store."""
        return self._block(Store.image_block, self._image_edges, rows)

    def text_block(self, rows: np.ndarray | slice) -> np.ndarray:
        """Text latents of `rows`, contiguous float32 (n, C), verified as those of each store."""
        return self._block(Store.text_block, self._text_edges, rows)

    @cached_property
    def _image_edges(self) -> np.ndarray:
        """(S + 1,) rows at which a store's images begin."""
        return np.cumsum([0, *(len(store.image_id) for store in self.stores)])

    @cached_property
    def _text_edges(self) -> np.ndarray:
        return np.cumsum([0, *(len(store.text_image) for store in self.stores)])

    def _block(
        self, read: Callable[[Store, np.ndarray], np.ndarray], edges: np.ndarray, rows: np.ndarray | slice
    ) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(edges[-1])[rows]
        if len(rows) and not 0 <= rows.min() <= rows.max() < edges[-1]:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {edges[-1]}")
        store_n = np.searchsorted(edges, rows, side="right") - 1
        parts = [read(store, rows[store_n == place] - edges[place]) for place, store in enumerate(self.stores)]
        block = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
        for place, part in enumerate(parts):
            block[store_n == place] = part
        return block


AnyStore = Store | JoinedStore


def join_stores(stores: Sequence[Store]) -> AnyStore:
    """One store as it is, several as one. UsageError where there is none, or two hold the same."""
    if not stores:
        raise UsageError("wanted a store, or several, and none is named")
    require_different(stores)
    return stores[0] if len(stores) == 1 else JoinedStore(tuple(stores))


def require_different(stores: Sequence[Store]) -> None:
    """UsageError when two of the stores hold the same: each pair would be its own negative or rival, and count
    twice."""
    seen: dict[str, Store] = {}
    for store in stores:
        other = seen.setdefault(store.content_hash, store)
        if other is not store:
            raise UsageError(f"{other.path} and {store.path} hold the same pairs: name one of them")


def shared_images(train: Sequence[Store], train_split: str, val: AnyStore, val_split: str) -> int:
    """How many validation images have the very bytes of a training image."""
    seen = {row.tobytes() for store in train for row in store.image_sha256[store.rows(train_split).image]}
    return sum(row.tobytes() in seen for row in val.image_sha256[val.rows(val_split).image])


def paths_of(store: AnyStore) -> str:
    """In words."""
    return " and ".join(str(one.path) for one in store.stores)
