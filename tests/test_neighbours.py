"""The smallest entries of rows against a full sort. The choice of a bank is tested where PatchCore is."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mlffn_lite.neighbours import smallest


@given(st.integers(1, 5), st.integers(1, 90), st.data())
def test_smallest_equals_sorting(rows: int, columns: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, columns))
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 2**16))))
    table = order.float().view(rows, columns)
    assert smallest(table, count).tolist() == table.argsort(1)[:, :count].tolist()


def test_smallest_among_equals_and_infinities_are_entries_of_their_value() -> None:
    table = torch.tensor([[2.0, 1, torch.inf, 1] * 10, [torch.inf] * 40])
    columns = smallest(table, 3)
    assert columns[0].unique().numel() == columns[1].unique().numel() == 3
    assert table.gather(1, columns).tolist() == [[1, 1, 1], [torch.inf] * 3]
