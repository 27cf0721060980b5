"""Which layers of a frozen encoder make the latent: its parts, each pooled as the encoder is pooled.

Layer 0 is the output of the embeddings (of a convolutional net: of its stem), layer k that of the k-th block or stage,
and `last` the encoder's own vector. One forward gives all of them.

Letters: B items, D width of the latent, P width of a part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.encoders.folders import Side
from alignvl_cli.encoders.towers import CANNOT_RUN
from alignvl_cli.errors import UsageError
from alignvl_cli.settings import LAST_LAYER

FLAGS = {Side.vision: "--image-layers", Side.text: "--text-layers"}
SAME = 1e-5
"""Largest difference, as a share of the largest entry, between a layer and the encoder's own vector that is it."""
SHALLOW = 4
"""Up to as many states, that of the embeddings among them, `auto` takes the encoder's own vector alone: what earlier
layers add was measured on deeper models."""
Pool = Callable[[Tensor], Tensor]
"""From a layer's hidden state, (B, L, P) or (B, P, H, W), to its vectors (B, P)."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """A layer's hidden state in the place where the ways to pool look for the last one."""

    last_hidden_state: Tensor


@dataclass(frozen=True, slots=True)
class Layers:
    """The parts of a latent, in the order in which they stand in it; several are each of unit length."""

    names: tuple[str, ...] = (LAST_LAYER,)
    widths: tuple[int, ...] = ()
    note: str = ""
    """Why `auto` stands for `last` alone; empty where it does not."""

    @property
    def arguments(self) -> dict[str, bool]:
        """What the model's forward is called with besides."""
        return {} if self.names == (LAST_LAYER,) else {"output_hidden_states": True}

    @property
    def record(self) -> dict[str, Any]:
        """What the encoder's record says of the parts; nothing where the latent is the encoder's own vector."""
        if self.names == (LAST_LAYER,):
            return {}
        parts = zip(self.names, self.widths, strict=True)
        return {"parts": [{"name": name, "width": width} for name, width in parts]}

    def vectors(self, output: Any, last_BP: Tensor, pool: Pool) -> Tensor:
        """Latents (B, D) float32 from a model's output and its own vector."""
        part_BP = [last_BP if name == LAST_LAYER else pool(output.hidden_states[int(name)]) for name in self.names]
        if len(part_BP) > 1:
            part_BP = [F.normalize(vector_BP, dim=1) for vector_BP in part_BP]
        return torch.cat(part_BP, dim=1)

    def mean(self, views_VBD: Tensor) -> Tensor:
        """Latents (B, D) of pictures from those of their views: of each part the mean direction, of unit length."""
        part_VBP = views_VBD.split(self.widths or views_VBD.shape[2], dim=2)
        return torch.cat([F.normalize(F.normalize(one, dim=2).mean(dim=0), dim=1) for one in part_VBP], dim=1)


def layers_on_record(record: Mapping[str, Any]) -> str:
    """What to ask for to get the parts of a recorded encoder again."""
    return ",".join(part["name"] for part in record["parts"]) if "parts" in record else LAST_LAYER


def run_probe(forward: Callable[..., Any], asked: str) -> Any:
    """The output of `forward`, with hidden states where other layers than the last are `asked` for and the model can
    give them: `choose_layers` says what follows where it cannot."""
    if asked != LAST_LAYER:
        try:
            return forward(output_hidden_states=True)
        except CANNOT_RUN:  # so it may without
            pass
    return forward()


def choose_layers(
    side: Side, spec: str, asked: str, output: Any, last_BP: Tensor, pool: Pool | None, *, of_one_token: bool
) -> Layers:
    """The layers that are `asked` for (`last`, `all`, `auto`, or names with commas), by a probe's `output`.

    The highest layer is called `last` where it is the encoder's own vector. `pool` is None where nothing tells how to.
    `of_one_token`: the encoder is read at one token, which before the first layer says nothing of its input. UsageError
    for layers that are not there; where a model has none to show, `auto` is `last`.
    """
    if asked == LAST_LAYER:
        return Layers()
    states = getattr(output, "hidden_states", None)
    problem = ""
    if not states:
        problem = "it shows none of its layers"
    elif any(state.ndim != output.last_hidden_state.ndim for state in states):
        problem = "its layers are laid out otherwise than its output, so nothing tells how to pool them"
    elif pool is None:
        problem = "nothing tells how to pool its layers"
    elif asked == "auto" and len(states) <= SHALLOW:
        problem = f"it has no more than {len(states) - 1} of them"
    if problem and asked == "auto":
        return Layers(note=f"{FLAGS[side]} auto takes the last layer alone of {spec}: {problem}")
    if not states or pool is None or problem:
        raise UsageError(f"{spec}: {problem}; give {FLAGS[side]} last, or choose another model")
    top = str(len(states) - 1)
    top_BP = pool(states[-1])
    is_top_last = top_BP.shape == last_BP.shape and bool((top_BP - last_BP).abs().max() <= SAME * last_BP.abs().max())
    first = 1 if of_one_token else 0
    there = [*map(str, range(first, len(states) - is_top_last)), LAST_LAYER]
    names = tuple(LAST_LAYER if is_top_last and name == top else name for name in _named(side, asked, there, top))
    for name in names:
        if name == "0" and of_one_token:
            raise UsageError(
                f"{FLAGS[side]} {asked}: {spec} is read at one token, which is the same for every input before the "
                f"first layer; begin with 1, or pool by mean"
            )
        if name not in there:
            raise UsageError(f"{FLAGS[side]} {asked}: {spec} has no layer {name}; it has {', '.join(there)}")
    if len(set(names)) < len(names):
        raise UsageError(f"{FLAGS[side]} {asked}: a layer is named twice ({spec} calls layer {top} `last` too)")
    widths = tuple((last_BP if name == LAST_LAYER else pool(states[int(name)])).shape[1] for name in names)
    return Layers(names, widths)


def _named(side: Side, asked: str, there: Sequence[str], top: str) -> list[str]:
    """The names that `asked` stands for.

    `auto`: of captions the first, the middle and the last layer, of pictures those at a half and at two thirds of the
    depth, and the last.
    """
    if asked == "all":
        return list(there)
    if asked != "auto":
        return asked.split(",")
    depth = int(top)
    wanted = [there[0], str(round(depth / 2))] if side is Side.text else [f"{depth / 2:.0f}", f"{2 * depth / 3:.0f}"]
    return [*dict.fromkeys(name for name in wanted if name in there and name != LAST_LAYER), LAST_LAYER]
