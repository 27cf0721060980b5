"""The nearest others of a row, against a plain sort; and block by block as all at once."""

import torch
import torch.nn.functional as F

from alignvl_cli.align import neighbours
from alignvl_cli.align.neighbours import nearest_others


def unit(rows: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(0)), dim=1)


def test_they_are_the_first_of_all_others_in_order():
    unit_UD, asked_Q = unit(40), torch.tensor([7, 0, 39, 7])
    found_QM = nearest_others(unit_UD, asked_Q, 5)
    for row, found_M in zip(asked_Q.tolist(), found_QM.tolist(), strict=True):
        cosines = {other: float(unit_UD[row] @ unit_UD[other]) for other in range(40) if other != row}
        assert found_M == sorted(cosines, key=cosines.__getitem__, reverse=True)[:5]


def test_blocks_change_nothing(monkeypatch):
    unit_UD, every_U = unit(33), torch.arange(33)
    whole_QM = nearest_others(unit_UD, every_U, 32)
    assert all(row not in found_M for row, found_M in zip(every_U.tolist(), whole_QM.tolist(), strict=True))
    monkeypatch.setattr(neighbours, "SCORES", 33 * 4)
    assert torch.equal(nearest_others(unit_UD, every_U, 32), whole_QM)
