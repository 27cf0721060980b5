"""Several adapter pairs as one: the weighted sum of their cosines, reduced to the width of the shared space.

A trained pair is joined with the closed form of the same latents (`--cca-weight`), and `--recipe best` joins pairs that
were trained with ingredients of different strength. Members err on different pairs, so their sum ranks better than the
best of them; how much each counts is told by the validation split.

Letters: N pairs of the sample, S width of the members side by side, E shared width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.align.adapters import AdapterPair, Joined
from alignvl_cli.align.streams import Streams
from alignvl_cli.errors import DataError
from alignvl_cli.recipes import closed_form_beside
from alignvl_cli.settings import Loss, TrainConfig
from alignvl_cli.store.reader import Store
from alignvl_cli.training.closed_form import fitted_tau, solve
from alignvl_cli.training.data import SplitLatents, blocks, load_split
from alignvl_cli.training.prepare import TRAIN, VAL, prepare
from alignvl_cli.training.state import Weighed
from alignvl_cli.training.subsets import select_pairs
from alignvl_cli.training.validation import is_clearly_better, measured

CCA_WEIGHTS = (0.25, 0.5, 1.0)
"""Of the closed form's cosines beside those of the trained pairs, which together count 1."""
SAMPLED_PAIRS = 20_000
"""Training pairs that the reduction is fitted to, at most."""


@dataclass(frozen=True)
class Data:
    """What members are weighed and joined by: latents as they are stored, resident on the CPU."""

    val: SplitLatents
    train: SplitLatents
    """Evenly spaced pairs of the training's."""

    @classmethod
    def read(cls, stores: Sequence[Store], val_store: Store, config: TrainConfig) -> "Data":
        """Of the pairs that the run of `config` is trained on."""
        selected = select_pairs(stores, TRAIN, config, Streams(config.seed, "cpu"))
        pairs = len(selected.text)
        pair_N = np.unique(np.linspace(0, pairs - 1, min(pairs, SAMPLED_PAIRS)).round().astype(np.int64))
        image_N, image_row_N = np.unique(selected.text_image_T.numpy()[pair_N], return_inverse=True)
        train = SplitLatents(
            selected.image.read(image_N), selected.text.read(pair_N), torch.from_numpy(image_row_N.astype(np.int64))
        )
        return cls(load_split([val_store], VAL), train)


@torch.inference_mode()
def embedded(adapters: AdapterPair, latents: SplitLatents) -> tuple[Tensor, Tensor]:
    """Unit embeddings of stored latents: (I, E) of images and (T, E) of captions."""
    img_IE = torch.cat([adapters.project_image(block_BD) for block_BD in blocks(latents.image_ID)])
    return img_IE, torch.cat([adapters.project_text(block_BC) for block_BC in blocks(latents.text_TC)])


@torch.inference_mode()
def join(
    members: Sequence[AdapterPair],
    weights: Sequence[float],
    data: Data,
    embed_dim: int,
    temperature: float | None = None,
) -> AdapterPair:
    """One pair whose cosine is nearly the weighted sum of the members', in `embed_dim` dimensions.

    The reduction is to the leading eigenvectors of A'A + B'B, A (N, S) and B (N, S) being the members' embeddings of
    training images and captions side by side: an orthogonal projection, the same on both sides, so inner products
    survive as far as they lie in it. Not centred: cosines are not. The temperature is `temperature`, or that of least
    InfoNCE on the validation split.
    """
    shapes = [member.shape for member in members]
    embed_dim = min(embed_dim, sum(shape.embed_dim for shape in shapes))
    shape = replace(
        shapes[0],
        members=tuple(shapes),
        embed_dim=embed_dim,
        loss=Loss.infonce,
        temperature=temperature,
        latent_width=0,
    )
    joined = AdapterPair(shape).to_empty(device="cpu").eval().requires_grad_(False)
    both: list[Tensor] = []
    for side in ("image", "text"):
        body = getattr(joined, side).body
        assert isinstance(body, Joined)
        for place, member in zip(body.members, members, strict=True):
            place.load_state_dict(getattr(member, side).state_dict())
        body.root_M.copy_(torch.tensor(weights).sqrt())
        latent_ND = data.train.image_ID if side == "image" else data.train.text_TC
        both.append(torch.cat([body.side_by_side(block_ND) for block_ND in blocks(latent_ND)]).double())
    moment_SS = sum(rows_NS.T @ rows_NS / len(rows_NS) for rows_NS in both)
    assert isinstance(moment_SS, Tensor)
    map_ES = torch.linalg.eigh(moment_SS).eigenvectors.flip(1)[:, :embed_dim].T
    for side in ("image", "text"):
        getattr(joined, side).body.map_ES.copy_(map_ES)
    joined.tau.fill_(fitted_tau(joined, data.val) if temperature is None else temperature)
    return joined


def weighed(
    members: Sequence[AdapterPair], choices: Sequence[tuple[float, ...]], data: Data
) -> Iterator[dict[str, Any]]:
    """Of each choice of weights, the validation recall of the weighted sum of cosines, not yet reduced."""
    sides = [embedded(member, data.val) for member in members]
    for weights in choices:
        img_IS, txt_TS = (
            torch.cat([weight**0.5 * side[which] for weight, side in zip(weights, sides, strict=True) if weight], dim=1)
            for which in (0, 1)
        )
        yield measured(F.normalize(img_IS, dim=1), F.normalize(txt_TS, dim=1), data.val.text_image_T)


def join_trained(
    stores: Sequence[Store], val_store: Store, config: TrainConfig, trained: Sequence[tuple[AdapterPair, float]]
) -> Iterator[Weighed | tuple[AdapterPair, dict[str, Any]]]:
    """`trained` pairs (in eval mode, on the CPU, each with its validation mean recall) joined with the closed form of
    the same pairs: each choice of members and weight tried on validation, then the joined pair and its validation
    recall; nothing after the choices where one trained pair alone is clearly better than any usual ensemble.

    Members are tried best first: one, two, ... all of them. All of them are kept, with the best weight of the closed
    form, unless a choice of fewer, or without it, is clearly better. (Weights differ little, so the best of three is
    no lucky one.)
    """
    order = sorted(range(len(trained)), key=lambda number: -trained[number][1])
    pairs = [trained[number][0] for number in order]
    solved = _closed_form(stores, val_store, config)
    if solved is None and len(pairs) == 1:
        return
    data = Data.read(stores, val_store, config)
    weights = (0.0,) if solved is None else CCA_WEIGHTS if config.cca_weight is None else (config.cca_weight,)
    choices = {
        (count, weight): (*([1 / count] * count), *([0.0] * (len(pairs) - count)), weight)
        for count in range(1, len(pairs) + 1)
        for weight in dict.fromkeys((0.0, *weights))
    }
    members = pairs if solved is None else [*pairs, solved]
    if solved is None:
        choices = {choice: shares[:-1] for choice, shares in choices.items()}
    found = dict(zip(choices, weighed(members, list(choices.values()), data), strict=True))
    usual = max(((len(pairs), weight) for weight in weights), key=lambda choice: found[choice]["mean_recall"])
    free = [choice for choice in found if config.cca_weight is None or choice[1] in weights]  # a given weight is kept
    best = max(free, key=lambda choice: found[choice]["mean_recall"])
    chosen = best if is_clearly_better(found[best], found[usual], data.val) else usual
    for choice, metrics in found.items():
        count, weight = choice
        numbers = tuple(number + 1 for number in order[:count])
        yield Weighed(members=numbers, weight=weight, metrics=metrics, chosen=choice == chosen)
    taken = [(member, share) for member, share in zip(members, choices[chosen], strict=True) if share]
    if len(taken) > 1:
        joined = join(
            [member for member, _ in taken], [share for _, share in taken], data, config.embed_dim, config.temperature
        )
        yield joined, measured(*embedded(joined, data.val), data.val.text_image_T)


def _closed_form(stores: Sequence[Store], val_store: Store, config: TrainConfig) -> AdapterPair | None:
    """The canonical correlations of the pairs that `config` trains on; None where it is not asked for, or images and
    captions do not vary together."""
    if config.cca_weight == 0:
        return None
    pairs = sum(len(store.rows(TRAIN).text) for store in stores)
    plan, state, _ = prepare(stores, val_store, closed_form_beside(config, pairs), "cpu")
    try:
        for _ in solve(plan, state):
            pass
    except DataError:
        return None
    return state.adapters.eval()
