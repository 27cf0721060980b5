"""The nearest others of a row, against a plain sort; and block by block as all at once."""

import torch
import torch.nn.functional as F

from alignvl_cli.align import ranks
from alignvl_cli.align.ranks import nearest_others


def unit(rows: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(0)), dim=1)


def test_they_are_the_first_of_all_others_in_order():
    unit_UD, asked_Q = unit(40), torch.tensor([7, 0, 39, 7])
    found_QM = nearest_others(unit_UD.__getitem__, 40, asked_Q, 5)
    for row, found_M in zip(asked_Q.tolist(), found_QM.tolist(), strict=True):
        cosines = {other: float(unit_UD[row] @ unit_UD[other]) for other in range(40) if other != row}
        assert found_M == sorted(cosines, key=cosines.__getitem__, reverse=True)[:5]


def test_blocks_and_what_is_held_change_nothing(monkeypatch):
    unit_UD, every_U = unit(33), torch.arange(33)
    whole_QM = nearest_others(unit_UD.__getitem__, 33, every_U, 32)
    assert all(row not in found_M for row, found_M in zip(every_U.tolist(), whole_QM.tolist(), strict=True))
    monkeypatch.setattr(ranks, "ASKED", 4)
    monkeypatch.setattr(ranks, "OTHERS", 7)
    read = []

    def counted(row_N):
        read.append(len(row_N))
        return unit_UD[row_N]

    for held in (None, 1, 11):
        read.clear()
        found_QM = nearest_others(counted, 33, every_U, 32, held=held)
        assert torch.equal(found_QM, whole_QM)
        assert max(read) == {None: 33, 1: 7, 11: 8}[held]


def test_who_is_no_other_is_said_by_the_caller():
    unit_UD, group_U = unit(30), torch.arange(30) // 3

    def of_one_group(row_B, other_G):
        return group_U[row_B][:, None] == group_U[other_G]

    found_QM = nearest_others(unit_UD.__getitem__, 30, torch.arange(30), 27, left_out=of_one_group)
    for row, found_M in enumerate(found_QM.tolist()):
        assert sorted(found_M) == [other for other in range(30) if other // 3 != row // 3]


def test_nobody_asked():
    assert nearest_others(unit(5).__getitem__, 5, torch.arange(0), 2).shape == (0, 2)
