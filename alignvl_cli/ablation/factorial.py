"""Main effects and interactions of a study whose arms are every combination of some factors' levels.

A main effect is the mean difference between a level and the factor's first, over all combinations of the others. An
interaction of two is a difference of differences: by how much the one's effect is larger with the other than without.
As there are as many effects as arms less one, they are the arms' differences told in another way, and a family of
their own.
"""

# A arms, in the order of `itertools.product` over the factors' levels; L levels of a factor.

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np


@dataclass(frozen=True)
class Effect:
    name: str
    factors: tuple[str, ...]
    meaning: str
    weight_A: np.ndarray
    """The effect is the weighted sum of the arms' means."""


def effects(factors: Mapping[str, Sequence[str]]) -> list[Effect]:
    """All of them, main effects first. `factors` has the levels of each, the first being the one compared with."""
    return [
        _effect(factors, dict(zip(chosen, levels, strict=True)))
        for order in range(1, len(factors) + 1)
        for chosen in itertools.combinations(factors, order)
        for levels in itertools.product(*(factors[factor][1:] for factor in chosen))
    ]


def _effect(factors: Mapping[str, Sequence[str]], level_of: Mapping[str, str]) -> Effect:
    weights = []
    for factor, levels in factors.items():
        if factor in level_of:
            weight_L = np.zeros(len(levels))
            weight_L[levels.index(level_of[factor])], weight_L[0] = 1.0, -1.0
        else:
            weight_L = np.full(len(levels), 1 / len(levels))
        weights.append(weight_L)
    names = [factor if len(factors[factor]) == 2 else f"{factor} {level}" for factor, level in level_of.items()]
    steps = [f"{level} against {factors[factor][0]}" for factor, level in level_of.items()]
    return Effect(
        name=" x ".join(names),
        factors=tuple(level_of),
        meaning=steps[0] if len(steps) == 1 else "how much " + " changes with ".join(steps),
        weight_A=reduce(np.kron, weights),
    )
