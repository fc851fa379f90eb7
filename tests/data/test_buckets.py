"""Buckets: sizes, the nearest one, and an order that is pure, keeps blocks together and leaves nobody out."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vega_diffusion.data.buckets import BucketOrder, bucket_sizes, histogram, nearest_bucket


def test_sizes_have_about_equal_areas_and_allowed_sides():
    sizes = bucket_sizes(1024, 64, 2.0)
    assert (1024, 1024) in sizes
    assert (1408, 704) in sizes
    assert sorted((height, width) for width, height in sizes) == sizes
    for width, height in sizes:
        assert width % 64 == height % 64 == 0
        assert 0.85 < width * height / 1024**2 <= 1
        assert max(width, height) <= 2 * min(width, height)
    assert bucket_sizes(128, 32, 1.0) == [(128, 128)]


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((512, 512), (1024, 1024)),
        ((3000, 3010), (1024, 1024)),
        ((1920, 1080), (1344, 768)),
        ((1000, 9000), (704, 1408)),
    ],
)
def test_a_picture_goes_to_the_nearest_ratio(size, bucket):
    assert nearest_bucket(size, bucket_sizes(1024, 64, 2.0)) == bucket


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 8), st.integers(0, 99))
def test_blocks_hold_one_bucket_and_everybody_comes_equally_often(sizes, block, seed):
    order, total = BucketOrder(sizes, block, seed), sum(sizes)
    rounds = 2 * block  # after `block` epochs every bucket has given a whole number of blocks
    items = [order.item(position) for position in range(total * rounds)]
    for start in range(0, len(items), block):
        assert len({bucket for bucket, _ in items[start : start + block]}) == 1
    assert Counter(items) == {(bucket, item): rounds for bucket, size in enumerate(sizes) for item in range(size)}


def test_the_order_is_a_function_of_seed_and_position():
    forwards = [BucketOrder([7, 20, 3], 4, 5).item(position) for position in range(240)]
    order = BucketOrder([7, 20, 3], 4, 5)
    assert [order.item(position) for position in reversed(range(240))] == forwards[::-1]
    assert [order.item(position) for position in range(100, 140)] == forwards[100:140]
    assert [BucketOrder([7, 20, 3], 4, 6).item(position) for position in range(240)] != forwards


def test_small_buckets_wait_until_they_fill_a_block():
    order = BucketOrder([1, 64], 8, 0)
    seen = Counter(order.item(position) for position in range(8 * 65))
    assert seen[0, 0] == 8  # one block in eight epochs, eight times the same picture
    assert histogram([(8, 8), (8, 16), (8, 8)]) == {"8x8": 2, "8x16": 1}
