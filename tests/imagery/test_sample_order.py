"""The order of samples: a true permutation every epoch, a function of (seed, position), and well mixed."""

import itertools
from collections import Counter

import pytest

from common.keyed_random import index_at, mix, permute


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 100, 1025])
def test_every_index_exactly_once(length: int) -> None:
    for key in range(3):
        assert sorted(permute(index, length, key) for index in range(length)) == list(range(length))


def test_a_billion_records_cost_nothing() -> None:
    images = {permute(index, 1_000_000_000, 7) for index in range(1000)}
    assert len(images) == 1000 and max(images) > 900_000_000


def test_all_orders_of_a_few_are_about_equally_likely() -> None:
    orders = Counter(tuple(permute(index, 4, key) for index in range(4)) for key in range(2400))
    assert set(orders) == set(itertools.permutations(range(4)))
    # 24 orders, 100 expected of each: chi-square with 23 degrees of freedom is below 50 in 99.9 % of cases.
    assert sum((count - 100) ** 2 / 100 for count in orders.values()) < 50


def test_neighbours_are_torn_apart() -> None:
    places = [permute(index, 1000, 1) for index in range(1000)]
    steps = [abs(a - b) for a, b in itertools.pairwise(places)]
    assert 280 < sum(steps) / len(steps) < 390  # a third of the length for an ideal shuffle


def test_epochs_and_seeds_differ_and_repeat() -> None:
    epochs = [[index_at(epoch * 50 + place, 50, 3, shuffle=True) for place in range(50)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == [index_at(place, 50, 3, shuffle=True) for place in range(50)]
    assert epochs[0] != [index_at(place, 50, 4, shuffle=True) for place in range(50)]


def test_without_shuffle_the_order_is_the_order() -> None:
    assert [index_at(position, 3, 9, shuffle=False) for position in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_the_order_is_the_same_in_every_release() -> None:
    # A resumed run depends on it: these numbers may never change.
    assert mix(0) == 0xE220A8397B1DCDAF  # first output of SplitMix64 seeded with 0, from its reference code
    assert [index_at(position, 10, 1, shuffle=True) for position in range(10)] == [0, 5, 2, 4, 8, 6, 1, 3, 7, 9]


def test_an_index_outside_is_an_error() -> None:
    with pytest.raises(IndexError):
        permute(5, 5, 0)
