"""Every item comes up once an epoch, in an order that depends on (seed, epoch) alone."""

from __future__ import annotations

from vega_diffusion.data.order import ShuffledOrder


def test_each_epoch_is_a_fresh_permutation():
    order = ShuffledOrder(10, seed=1)
    first, second = ([order.index(p) for p in range(start, start + 10)] for start in (0, 10))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert [ShuffledOrder(10, seed=2).index(p) for p in range(10)] != first


def test_positions_may_be_asked_in_any_order():
    order = ShuffledOrder(7, seed=3)
    forwards = [order.index(p) for p in range(30)]
    assert [order.index(p) for p in reversed(range(30))] == forwards[::-1]
