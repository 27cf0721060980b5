"""The values of a training: the records it yields, its plan, which stays, and its state, which changes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from alignvl_cli.align.adapters import AdapterPair, AdapterShape
from alignvl_cli.align.streams import Streams
from alignvl_cli.settings import Precision, TrainConfig
from alignvl_cli.training.data import SplitLatents
from alignvl_cli.training.data_parallel import DataParallel
from alignvl_cli.training.ingredients import Gather, Scales, Transform
from alignvl_cli.training.optimizer import Average
from alignvl_cli.training.unpaired import Unpaired, UnpairedRows
from alignvl_cli.training.validation import Skips, is_validation_epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """Said once, before the first step."""

    pairs: int
    """Training pairs: text rows with their image."""
    images: int
    val_images: int
    val_captions: int
    epochs: int
    steps_per_epoch: int
    total_steps: int
    batch_size: int
    parameters: int
    device: str
    precision: str
    threads: int
    latent_rms: dict[str, float]
    """Root mean square of the training latents' entries, after `--latent-norm`, by modality."""
    noise_share: dict[str, float] | None
    """Standard deviation of the noise over that RMS, by modality; None without RP or with noise on the output."""
    first_step: int
    """Steps done before, before the run was resumed; 0 in a new run."""
    notes: tuple[str, ...]
    """Sentences that the user should read."""
    selection: dict[str, Any] = field(default_factory=dict)
    """`corruption` and `subset`, where there were any, with the numbers of pairs that they touched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Means over the steps since the previous one of these."""

    step: int
    """Steps done, of `Started.total_steps`."""
    epoch: int
    """The epoch that this step belongs to, from 1."""
    loss: float
    """Nats; what is minimised."""
    hard_loss: float
    """Nats, against the hard target: comparable between arms."""
    tau: float
    lr: float
    skipped: int
    """Steps since the beginning whose loss or gradient was not finite: they changed nothing, and have no part in the
    means."""
    pairs_per_s: float
    """Rows in the loss a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validated:
    """Recall on the validation split, in percent."""

    step: int
    epoch: int
    """Epochs done; 0: what is validated is a start at CCA."""
    metrics: dict[str, Any]
    """`image_to_text` and `text_to_image` ({"R@1", "R@5", "R@10"}), `rsum`, `mean_recall`; and by modality
    `mean_squared_cosine`, that of two embeddings (near 1: collapsed)."""
    best: bool
    """Whether this is the one to keep so far (`--keep-epoch`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Warned:
    """Something that may spoil the run; each cause is said once."""

    step: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A closed form with one ridge, and its recall on the validation split."""

    ridge: float | None
    """In units of the latents' mean variance; None: the form has none."""
    metrics: dict[str, Any]
    """As `Validated.metrics`."""
    best: bool
    dimensions: int | None = None
    """Of CSA: how many canonical directions count, ..."""
    power: float | None = None
    """... and the power of the correlations that weigh them."""
    objective: float | None = None
    """Of Wasserstein-Procrustes: the mean cosine of rows that are matched, not paired; the best of it is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """The next of the pairs that are trained to be joined."""

    number: int
    """From 1."""
    of: int
    settings: dict[str, Any]
    """In what it departs from the first, by flag."""
    epochs: int
    total_steps: int
    steps_before: int
    """That the pairs before it have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighed:
    """Trained adapters joined with the closed form, and the validation recall."""

    members: tuple[int, ...]
    """Which of the trained pairs, from 1; their cosines have equal weights, 1 together."""
    weight: float
    """Of the closed form's cosines; 0: without it."""
    metrics: dict[str, Any]
    """As `Validated.metrics`; of the sum of cosines, before it is reduced to the shared width."""
    chosen: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One of several settings that are compared, after a share of its training, and its validation recall."""

    candidate: int
    """From 1."""
    settings: dict[str, Any]
    """In what it departs from the first candidate, by flag."""
    share: float
    """Of its epochs, in a schedule of its own."""
    metrics: dict[str, Any]
    """As `Validated.metrics`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """Said once, when the run is complete."""

    result: dict[str, Any]
    """What `result.json` holds."""


Record = Started | Step | Validated | Tried | Member | Weighed | Compared | Warned | Finished


def log_line(record: Step | Validated | Tried | Member | Weighed | Compared | Warned) -> dict[str, Any]:
    """The line of `metrics.jsonl` for a record."""
    return {"kind": type(record).__name__.lower(), **asdict(record)}


LOGGED_STEPS = 200
"""A run logs about this often, and at each validation."""


@dataclass
class Best:
    """The weights that the run will keep, copied when they were validated."""

    weights: dict[str, Tensor]
    step: int
    epoch: int
    metrics: dict[str, Any]


@dataclass
class Trained:
    """A pair of adapters that is done, of several that are joined."""

    shape: AdapterShape
    best: Best
    steps: int = 0
    total_steps: int = 0
    """That it would have had, if it did not stop early."""
    skipped: int = 0

    @classmethod
    def of(cls, state: "TrainState", total_steps: int) -> "Trained":
        """What `state` has reached, weights on the CPU."""
        assert state.best is not None
        weights = {name: tensor.cpu() for name, tensor in state.best.weights.items()}
        best = replace(state.best, weights=weights)
        return cls(state.adapters.shape, best, state.step, total_steps, int(state.skips.counts[0]))

    def pair(self) -> AdapterPair:
        """Rebuilt on the CPU, in eval mode."""
        adapters = AdapterPair(self.shape).to_empty(device="cpu").eval().requires_grad_(False)
        adapters.load_state_dict(self.best.weights)
        return adapters


def copied(adapters: AdapterPair) -> dict[str, Tensor]:
    """The weights as they are now."""
    return {name: tensor.detach().clone() for name, tensor in adapters.state_dict().items()}


@dataclass
class TrainState:
    """All that changes while training goes on: what a checkpoint holds."""

    adapters: AdapterPair
    optimiser: torch.optim.Optimizer
    streams: Streams
    average: Average | None
    """Of the weights, with `--ema`: what is validated and kept then."""
    skips: Skips
    step: int = 0
    best: Best | None = None
    """What is kept, by `--keep-epoch`."""
    highest: dict[str, Any] | None = None
    """The validation metrics of the highest mean recall so far."""
    validations_since_best: int = 0
    """Since the highest."""
    epoch_began: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    """State of the permutation's stream before it drew the order of the present epoch."""
    warned: set[str] = field(default_factory=set)
    """Causes that were warned about: each is said once."""
    done: list[Trained] = field(default_factory=list)
    """The pairs trained before this one, to be joined with it."""

    @property
    def judged(self) -> AdapterPair:
        """The adapters that are validated and kept."""
        return self.adapters if self.average is None else self.average.adapters


@dataclass(frozen=True)
class Loaded:
    """The latents of a training, prepared, where they are computed with; candidates of one shape of data share them."""

    config: TrainConfig
    gather: Gather
    val: SplitLatents
    corrupted_P: Tensor | None
    scales: Scales
    record: dict[str, Any]
    """What a run's configuration says of the pairs selected."""
    preparation: dict[str, Tensor]
    """Buffers of what comes before the adapters' bodies, fitted."""
    unpaired: UnpairedRows | None = None
    teacher: AdapterPair | None = None
    """Of the unpaired rows, once it is solved for."""

    def serves(self, config: TrainConfig) -> bool:
        """Whether a training by `config`, be it of another seed, can be on these very rows."""
        is_resident = isinstance(self.gather.data, SplitLatents)
        names = DECIDES_ROWS if is_resident else (*DECIDES_ROWS, "batch_size")
        return all(getattr(self.config, name) == getattr(config, name) for name in names)


DECIDES_ROWS = (
    *("subset", "corrupt_captions", "corrupt_kind", "mask_duplicates", "memory_budget"),
    *("image_parts", "text_parts", "latent_norm", "latent_width"),
)


@dataclass(frozen=True)
class Plan:
    """All that stays: data, settings and the ingredients, collected once."""

    config: TrainConfig
    gather: Gather
    inputs: Sequence[Transform]
    outputs: Sequence[Transform]
    val: SplitLatents
    steps_per_epoch: int
    precision: Precision
    parallel: DataParallel
    loss_tile: int
    """Side of the tiles that the loss is computed in."""
    loss_rounds: bool = False
    """Whether the loss takes its products in fewer digits, as the adapters do."""
    corrupted_P: Tensor | None = None
    """Which training pairs were corrupted; None without `--corrupt-captions`."""
    unpaired: Unpaired | None = None
    loaded: Loaded | None = None
    """What a plan of another shape can be made of (`prepare`)."""

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @property
    def log_every(self) -> int:
        return max(1, self.total_steps // LOGGED_STEPS)

    def validates_after(self, step: int) -> bool:
        """Whether a validation follows step `step`, counted from 1."""
        epoch, into = divmod(step, self.steps_per_epoch)
        return into == 0 and epoch > 0 and is_validation_epoch(epoch, self.config.epochs)
