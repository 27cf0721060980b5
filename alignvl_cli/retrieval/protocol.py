"""How an evaluation counts: settings and their words.

Loads no heavy library, so that the command line can name them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from alignvl_cli.errors import UsageError, check_flag

RECALL_AT = (1, 5, 10)
"""The K of RSUM and of every default table."""
TIE = "1e-06"


class HubnessReport(StrEnum):
    """What is told of hubs (`eval --hubness`)."""

    report = "report"
    """How unevenly the gallery's rows occur among the nearest ones."""
    nnn = "nnn"
    """Also recall after nearest-neighbour normalisation, which needs the training split alone."""
    inverted_softmax = "inverted-softmax"
    """Also recall after inverted softmax, which uses all test queries together."""


class HubCorrection(StrEnum):
    """What a search can correct hubs with (`index --hubness`): one query at a time, so nothing transductive."""

    nnn = "nnn"


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """What counts as a hit, and among how many."""

    recall_at: tuple[int, ...] = RECALL_AT
    """K of the recalls that are reported; RSUM is always of 1, 5 and 10 (`--recall-k`)."""
    folds: int = 1
    """Galleries into which the images are cut, in their order; figures are means over them (`--folds`)."""
    identical_hits: bool = False
    """Whether a caption of the very same text is a match too (`--identical-hits`)."""

    def __post_init__(self) -> None:
        if not self.recall_at or min(self.recall_at) < 1 or len(set(self.recall_at)) < len(self.recall_at):
            raise UsageError(f"--recall-k: wanted distinct numbers from 1, e.g. 1,5,10, got {_listed(self.recall_at)}")
        check_flag(self.folds >= 1, "folds", "at least 1", self.folds)

    @classmethod
    def parse(cls, recall_k: str, *, folds: int = 1, identical_hits: bool = False) -> "Protocol":
        """The protocol for `recall_k` as it is typed, `1,5,10`; UsageError for what is no list of numbers."""
        try:
            recall_at = tuple(int(part) for part in recall_k.split(","))
        except ValueError as problem:
            raise UsageError(f"--recall-k: wanted numbers with commas, e.g. 1,5,10, got '{recall_k}'") from problem
        return cls(recall_at=recall_at, folds=folds, identical_hits=identical_hits)

    @property
    def text(self) -> str:
        """The protocol in words, printed under every table."""
        return "; ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        yield (
            "R@K = share of queries with a match among the first K: for an image any of its captions, for a caption "
            "its image"
        )
        if self.identical_hits:
            yield "IDENTICAL HITS: a caption of the very same text is a match too, and so is such a caption's image"
        if self.folds > 1:
            yield (
                f"the gallery is every caption, or every image, of a fold: means over {self.folds} folds of "
                "consecutive images"
            )
        else:
            yield "the gallery is every caption, or every image, of the split"
        yield f"exact cosines, and a tie (within {TIE} of the match) loses"
        yield "ranks count from 1"


DEFAULT_PROTOCOL = Protocol()


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers)) or "nothing"
