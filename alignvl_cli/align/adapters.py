"""The trainable part: one adapter a modality, from a frozen latent to the shared space, and the temperature.

FuseMix's inverted bottleneck (Vouitsis et al., arXiv 2312.10144), SAIL's gated unit (arXiv 2412.04616), an MLP, and a
linear map. Dropout draws its masks from the run's own generator. What is done to stored latents before anything else
(centred, reduced, normalised) travels with the adapters.

Letters: N rows, D width of a latent, H hidden width, K width kept of a latent, E shared width.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignvl_cli.align.streams import Stream, Streams
from alignvl_cli.settings import AdapterKind, LatentNorm, Loss

SMALLEST_SCALE = 1e-6
"""A coordinate that hardly varies in training is centred and left at its scale."""


class AsStored(nn.Module):
    """The latents as they are."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, latent_ND: Tensor) -> Tensor:
        return latent_ND

    def fit(self, blocks: Iterable[Tensor]) -> None:
        """Nothing to learn from the training latents."""

    @property
    def factor(self) -> float:
        """By how much distances grow; 1 where directions differ in it, or none is meant."""
        return 1.0


class Columns(AsStored):
    """Some columns of the latents, by runs of them [start, stop), one after the other."""

    def __init__(self, width: int, runs: Sequence[tuple[int, int]]) -> None:
        super().__init__(width)
        self.width, self.runs = width, tuple(runs)

    def forward(self, latent_ND: Tensor) -> Tensor:
        return torch.cat([latent_ND[:, start:stop] for start, stop in self.runs], dim=1)


class UnitLength(AsStored):
    """Each row divided by its Euclidean length."""

    def forward(self, latent_ND: Tensor) -> Tensor:
        return F.normalize(latent_ND, dim=1)


class Standardize(AsStored):
    """Each coordinate centred and divided by its standard deviation over the training latents."""

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("scale_D", torch.ones(width))

    def reset_parameters(self) -> None:
        """Back to no change at all."""
        self.mean_D.zero_()
        self.scale_D.fill_(1.0)

    def forward(self, latent_ND: Tensor) -> Tensor:
        return (latent_ND - self.mean_D) / self.scale_D

    def fit(self, blocks: Iterable[Tensor]) -> None:
        """Mean and (population) standard deviation over all rows of `blocks`."""
        scale_D = self._centre(blocks).sqrt()
        self.scale_D.copy_(torch.where(scale_D > SMALLEST_SCALE, scale_D, 1.0))

    def _centre(self, blocks: Iterable[Tensor]) -> Tensor:
        """Take the mean over all rows of `blocks`, and give their variance (D,), float64; merged block by block."""
        rows = 0
        mean_D = torch.zeros(len(self.mean_D), dtype=torch.float64)
        square_D = torch.zeros_like(mean_D)
        for block_ND in blocks:
            block_rows = len(block_ND)
            block_64 = block_ND.double()
            shift_D = block_64.mean(dim=0) - mean_D
            block_square_D = (block_64 - block_64.mean(dim=0)).square().sum(dim=0)
            square_D += block_square_D + shift_D.square() * rows * block_rows / (rows + block_rows)
            mean_D += shift_D * block_rows / (rows + block_rows)
            rows += block_rows
        self.mean_D.copy_(mean_D)
        return square_D / rows


class UnitMeanSquare(Standardize):
    """Each coordinate centred, and all divided by one number: the mean square of an entry in training is then 1.

    What a residual block adds is of that size whatever the encoder's own, and directions keep their proportions.
    """

    def fit(self, blocks: Iterable[Tensor]) -> None:
        """The mean, and the root of the mean variance, over all rows of `blocks`; latents that do not vary keep their
        scale."""
        scale = self._centre(blocks).mean().sqrt().item()
        self.scale_D.fill_(scale if scale > SMALLEST_SCALE else 1.0)

    @property
    def factor(self) -> float:
        return 1 / self.scale_D[0].item()


class PrincipalComponents(AsStored):
    """The leading K principal components of the training latents: centred, rotated and cut.

    Distances within the kept subspace are those of the latents, so noise of a given size means the same; all but for
    one factor where `rescales`, which makes the mean square of an entry 1 again.
    """

    mean_D: Tensor
    basis_DK: Tensor

    def __init__(self, width: int, kept: int, *, rescales: bool = False) -> None:
        super().__init__(width)
        self.rescales = rescales
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("basis_DK", torch.zeros(width, kept))

    def reset_parameters(self) -> None:
        """The first K coordinates as they are."""
        self.mean_D.zero_()
        self.basis_DK.copy_(torch.eye(*self.basis_DK.shape))

    def forward(self, latent_ND: Tensor) -> Tensor:
        return (latent_ND - self.mean_D) @ self.basis_DK

    def fit(self, blocks: Iterable[Tensor]) -> None:
        """Mean and leading eigenvectors of the covariance of all rows of `blocks`, in float64.

        The sign of a component is free: its largest entry is made positive.
        """
        rows, width = 0, len(self.mean_D)
        sum_D = torch.zeros(width, dtype=torch.float64)
        product_DD = torch.zeros(width, width, dtype=torch.float64)
        for block_ND in blocks:
            block_64 = block_ND.double()
            sum_D += block_64.sum(dim=0)
            product_DD.addmm_(block_64.T, block_64)
            rows += len(block_ND)
        mean_D = sum_D / rows
        kept = self.basis_DK.shape[1]
        variance_D, basis_DK = torch.linalg.eigh(product_DD / rows - mean_D.outer(mean_D))
        basis_DK, mean_square = basis_DK.flip(1)[:, :kept], variance_D.flip(0)[:kept].mean()
        largest_1K = basis_DK.abs().argmax(dim=0, keepdim=True)
        basis_DK = basis_DK * basis_DK.gather(0, largest_1K).sign()
        if self.rescales and mean_square > SMALLEST_SCALE**2:
            basis_DK /= mean_square.sqrt()
        self.mean_D.copy_(mean_D)
        self.basis_DK.copy_(basis_DK)

    @property
    def factor(self) -> float:
        return self.basis_DK[:, 0].norm().item() if self.rescales else 1.0


LATENT_NORM: dict[LatentNorm, Callable[[int], AsStored]] = {
    LatentNorm.none: AsStored,
    LatentNorm.l2: UnitLength,
    LatentNorm.standardize: Standardize,
    LatentNorm.rms: UnitMeanSquare,
}
assert LATENT_NORM.keys() == set(LatentNorm)


LEVELS = 256
WORD = (torch.int64, -(2**63), None)
MPS_WORD = (torch.int32, -(2**31), 2**31 - 1)
"""What one draw is: type, lowest value, and that beyond the highest (None: of the type). MPS draws 32 bits at most."""


class StreamDropout(nn.Module):
    """Inverted dropout: in training an entry is zero with probability `round(256 p) / 256`, else scaled by one over the
    share in fact kept, so that its expectation is the entry; bfloat16 rounds that factor, by 0.4 % at most.

    One 64-bit draw decides eight entries, a byte each: on a CPU a tenth of what torch's own dropout costs.
    With p = 0.6 the probability is 154 / 256 = 0.6016. `generator` must be set, on the module's device, before
    training. Where a batch is shared out among processes, masks are drawn for all `parts` of it, and `part` is used.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None
        self.part, self.parts = 0, 1
        self._dropped = min(round(p * LEVELS), LEVELS - 1)

    def forward(self, x_NH: Tensor) -> Tensor:
        if not self.training or self._dropped == 0:
            return x_NH
        if self.generator is None:
            raise ValueError("StreamDropout needs its generator before training")
        # Compared straight into the dtype of x: a mask of booleans costs two more passes over it.
        kept_NH = torch.empty_like(x_NH, requires_grad=False)
        torch.ge(self._random_bytes(x_NH, self.generator), self._dropped - LEVELS // 2, out=kept_NH)
        return x_NH * kept_NH.mul_(LEVELS / (LEVELS - self._dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"

    def _random_bytes(self, like_NH: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform int8 of the shape of `like_NH`."""
        size = like_NH.numel()
        dtype, lowest, beyond = MPS_WORD if like_NH.device.type == "mps" else WORD
        words = -(-size * self.parts // dtype.itemsize)
        bits = torch.empty(words, dtype=dtype, device=like_NH.device).random_(lowest, beyond, generator=generator)
        return bits.view(torch.int8)[self.part * size : (self.part + 1) * size].view(like_NH.shape)


TAU_INIT = 0.07
TAU_RANGE = (0.001, 0.5)
SIGMOID_TAU_INIT = 0.1
"""1 / t of the sigmoid loss: log t starts at ln 10 (SigLIP)."""
BIAS_INIT = -10.0


COMPLETIONS = 2
"""Coordinates of `Canonical` besides the canonical ones."""


Runs = tuple[tuple[int, int], ...]
"""Runs of columns of a latent, [start, stop) each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterShape:
    """All that is needed to rebuild an adapter pair before its weights are loaded."""

    kind: AdapterKind
    image_width: int
    text_width: int
    depth: int
    expansion: int
    """Hidden width over the latent's; 4 in FuseMix as released."""
    embed_dim: int
    dropout: float
    latent_norm: LatentNorm
    temperature: float | None
    """Fixed tau, or None: learned."""
    loss: Loss = Loss.infonce
    """It decides how the temperature is held: tau itself, or SigLIP's log t and b."""
    latent_width: int = 0
    """Wider latents are reduced to so many principal components; 0: none is."""
    image_columns: Runs | None = None
    """What of the stored latent is taken, of the parts that were asked for; None: all of it."""
    text_columns: Runs | None = None
    canonical: bool = False
    """Whether a linear adapter ends in `Canonical`."""
    members: tuple["AdapterShape", ...] = ()
    """Of an ensemble (`Joined`): the pairs that it is made of. What is said above is then of the first of them, but for
    the widths in and out."""

    def to_json(self) -> dict[str, Any]:
        """Without columns where all are taken, and what is there in few pairs alone."""
        left_out = {"image_columns": None, "text_columns": None, "canonical": False, "members": ()}
        record = {name: value for name, value in asdict(self).items() if (name, value) not in left_out.items()}
        return record | ({"members": [member.to_json() for member in self.members]} if self.members else {})

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "AdapterShape":
        """The shape that `to_json` wrote; ValueError, TypeError or KeyError when it is not one."""
        kind, norm = AdapterKind(record["kind"]), LatentNorm(record["latent_norm"])
        columns = {
            name: tuple((int(start), int(stop)) for start, stop in record[name])
            for name in ("image_columns", "text_columns")
            if record.get(name) is not None
        }
        loss = Loss(record.get("loss", Loss.infonce))
        members = tuple(cls.from_json(member) for member in record.get("members", ()))
        return cls(**{**record, **columns, "kind": kind, "latent_norm": norm, "loss": loss, "members": members})


class InvertedBottleneck(nn.Module):
    """FuseMix's block: `x + Linear(Dropout(GELU(Linear(LN(x)))))`, wide inside."""

    def __init__(self, width: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, expansion * width)
        self.dropout = StreamDropout(dropout)
        self.narrow = nn.Linear(expansion * width, width)

    def forward(self, x_ND: Tensor) -> Tensor:
        hidden_NH = F.gelu(self.widen(self.norm(x_ND)))
        return x_ND + self.narrow(self.dropout(hidden_NH))


def fusemix(width: int, shape: AdapterShape) -> nn.Module:
    """`depth` residual blocks, then LN and a linear map to the shared width."""
    blocks = [InvertedBottleneck(width, shape.expansion, shape.dropout) for _ in range(shape.depth)]
    return nn.Sequential(*blocks, nn.LayerNorm(width), nn.Linear(width, shape.embed_dim))


def linear(width: int, shape: AdapterShape) -> nn.Module:
    """One affine map."""
    return nn.Sequential(nn.Linear(width, shape.embed_dim))


def mlp(width: int, shape: AdapterShape) -> nn.Module:
    """LN, then `depth` times a wide Linear with GELU and dropout, then a linear map to the shared width."""
    hidden = shape.expansion * width
    layers: list[nn.Module] = [nn.LayerNorm(width)]
    for layer in range(shape.depth):
        layers += [nn.Linear(hidden if layer else width, hidden), nn.GELU(), StreamDropout(shape.dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden, shape.embed_dim))


class GatedUnit(nn.Module):
    """SAIL's `W3(act(W1 LN(x)) * (W2 LN(x)))`, act = ReLU6 as released (arXiv 2412.04616); its dropout is ours."""

    def __init__(self, width: int, shape: AdapterShape) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, shape.expansion * width)
        self.value = nn.Linear(width, shape.expansion * width)
        self.dropout = StreamDropout(shape.dropout)
        self.out = nn.Linear(shape.expansion * width, shape.embed_dim)

    def forward(self, x_ND: Tensor) -> Tensor:
        x_ND = self.norm(x_ND)
        return self.out(self.dropout(F.relu6(self.gate(x_ND)) * self.value(x_ND)))


ADAPTERS: dict[AdapterKind, Callable[[int, AdapterShape], nn.Module]] = {
    AdapterKind.fusemix: fusemix,
    AdapterKind.linear: linear,
    AdapterKind.mlp: mlp,
    AdapterKind.glu: GatedUnit,
}
assert ADAPTERS.keys() == set(AdapterKind)


class Joined(nn.Module):
    """An ensemble: members' unit embeddings, each times the root of its weight, side by side, then one linear map.

    Before that map the product of two such rows is the weighted sum of the members' cosines.
    """

    root_M: Tensor
    map_ES: Tensor

    def __init__(self, members: Sequence["Adapter"], widths: Sequence[int], embed_dim: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("root_M", torch.ones(len(members)))
        self.register_buffer("map_ES", torch.zeros(embed_dim, sum(widths)))

    def side_by_side(self, latent_ND: Tensor) -> Tensor:
        """Weighted members (N, S), S the sum of their widths."""
        unit = [F.normalize(member(latent_ND), dim=1) for member in self.members]
        return torch.cat([root * rows_NE for root, rows_NE in zip(self.root_M, unit, strict=True)], dim=1)

    def forward(self, latent_ND: Tensor) -> Tensor:
        return self.side_by_side(latent_ND) @ self.map_ES.T


class Canonical(nn.Module):
    """CSA's score as a cosine (Li et al., ICLR 2025): K canonical projections are brought to unit length, and each is
    scaled by the root of its weight, which is at most 1. What then lacks in length stands in a coordinate of each
    modality's own, so that the product of an image's row and a text's is the weighted sum of the K products alone."""

    root_K: Tensor

    def __init__(self, side: Literal["image", "text"], width: int) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("root_K", torch.ones(width))

    def forward(self, x_NK: Tensor) -> Tensor:
        scaled_NK = F.normalize(x_NK, dim=1) * self.root_K
        left_N1 = (1 - scaled_NK.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
        own = [left_N1, torch.zeros_like(left_N1)]
        return torch.cat([scaled_NK, *(own if self.side == "image" else reversed(own))], dim=1)


class Adapter(nn.Module):
    """Stored latents in, embeddings out (not normalised). `body` alone takes latents that are prepared already: cut to
    the parts that are taken (`select`), normalised (`norm`), and then reduced (`reduce`). Of an ensemble, whose members
    prepare for themselves, `body` is all there is."""

    def __init__(self, side: Literal["image", "text"], shape: AdapterShape) -> None:
        super().__init__()
        width = shape.image_width if side == "image" else shape.text_width
        self.body: nn.Module
        if shape.members:
            self.select, self.norm, self.reduce = AsStored(width), AsStored(width), AsStored(width)
            members = [Adapter(side, member) for member in shape.members]
            self.body = Joined(members, [member.embed_dim for member in shape.members], shape.embed_dim)
            return
        columns = shape.image_columns if side == "image" else shape.text_columns
        self.select = AsStored(width) if columns is None else Columns(width, columns)
        width = width if columns is None else sum(stop - start for start, stop in columns)
        self.norm = LATENT_NORM[shape.latent_norm](width)
        kept = min(width, shape.latent_width or width)
        rescales = shape.latent_norm is LatentNorm.rms
        self.reduce = PrincipalComponents(width, kept, rescales=rescales) if kept < width else AsStored(width)
        if shape.canonical:
            projected = shape.embed_dim - COMPLETIONS
            self.body = nn.Sequential(nn.Linear(kept, projected), Canonical(side, projected))
            return
        self.body = ADAPTERS[shape.kind](kept, shape)

    def forward(self, latent_ND: Tensor) -> Tensor:
        return self.body(self.reduce(self.norm(self.select(latent_ND))))

    @property
    def preparation(self) -> tuple[AsStored, AsStored, AsStored]:
        """What comes before the body, in order."""
        return self.select, self.norm, self.reduce


class AdapterPair(nn.Module):
    """Both adapters and the temperature. Weights are undefined until initialised or loaded: see `new_pair`.

    The temperature is `tau` (InfoNCE), or `log_t` beside a learned `bias` (sigmoid, where tau stands for 1 / t).
    """

    tau: Tensor
    log_t: Tensor
    bias: Tensor

    def __init__(self, shape: AdapterShape) -> None:
        super().__init__()
        self.shape = shape
        with torch.device("meta"):  # torch's constructors would draw from the global generator
            self.image, self.text = Adapter("image", shape), Adapter("text", shape)
        if shape.loss is Loss.infonce:
            self._hold("tau", TAU_INIT if shape.temperature is None else shape.temperature)
        else:
            self._hold("log_t", -math.log(SIGMOID_TAU_INIT if shape.temperature is None else shape.temperature))
            self.bias = nn.Parameter(torch.tensor(BIAS_INIT))

    def _hold(self, name: str, value: float) -> None:
        """A scalar that is learned, or, with a fixed temperature, kept."""
        if self.shape.temperature is None:
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))
        else:
            self.register_buffer(name, torch.tensor(value))

    @property
    def temperature(self) -> Tensor:
        """tau: the logits are cosine / tau, and a bias that no ranking and no softmax sees."""
        return self.tau if self.shape.loss is Loss.infonce else self.log_t.neg().exp()

    def scale_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """What makes logits of cosines."""
        if self.shape.loss is Loss.infonce:
            return self.tau.reciprocal(), None
        return self.log_t.exp(), self.bias

    def start_at(self, tau: float) -> None:
        """Have a learned temperature begin at `tau`."""
        with torch.no_grad():
            if self.shape.loss is Loss.infonce:
                self.tau.fill_(tau)
            else:
                self.log_t.fill_(-math.log(tau))

    def clamp_tau(self) -> None:
        """Bring a learned tau back into its range, in place, as the FuseMix release does before each use."""
        low, high = TAU_RANGE
        with torch.no_grad():
            if self.shape.loss is Loss.infonce:
                self.tau.clamp_(low, high)
            else:
                self.log_t.clamp_(-math.log(high), -math.log(low))

    @torch.inference_mode()
    def project_image(self, latent_ND: Tensor) -> Tensor:
        """Unit rows (N, E) of raw image latents. Call in eval mode."""
        return F.normalize(self.image(latent_ND), dim=1)

    @torch.inference_mode()
    def project_text(self, latent_ND: Tensor) -> Tensor:
        """Unit rows (N, E) of raw text latents. Call in eval mode."""
        return F.normalize(self.text(latent_ND), dim=1)


def temperature_of(weights: Mapping[str, Tensor]) -> float:
    """tau of an `AdapterPair`'s state dict."""
    return weights["tau"].item() if "tau" in weights else math.exp(-weights["log_t"].item())


def new_pair(shape: AdapterShape, streams: Streams) -> AdapterPair:
    """A freshly initialised pair on the CPU, in training mode; each tower draws from a stream of its own.

    Linear layers as torch initialises them: weight and bias from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    """
    pair = AdapterPair(shape)
    for tower, init, dropout in (
        (pair.image, Stream.init_image, Stream.dropout_image),
        (pair.text, Stream.init_text, Stream.dropout_text),
    ):
        tower.to_empty(device="cpu")
        for module in tower.modules():
            if isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                with torch.no_grad():
                    module.weight.uniform_(-bound, bound, generator=streams[init])
                    module.bias.uniform_(-bound, bound, generator=streams[init])
            elif isinstance(module, nn.LayerNorm | Standardize | PrincipalComponents):
                module.reset_parameters()
            elif isinstance(module, Canonical):
                module.root_K.fill_(1.0)
            elif isinstance(module, StreamDropout):
                module.generator = streams[dropout]
    return pair
