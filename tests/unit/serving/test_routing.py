from types import SimpleNamespace

import pytest

from serving.errors import InvalidInput
from serving.routing import Route, place

ONE, TWO, THREE = (SimpleNamespace(version=n) for n in (1, 2, 3))


def route(share=0.05):
    labels = {"stable": 1, "canary": 2, "shadow": 3}
    return Route({1: ONE, 2: TWO, 3: THREE}, labels, ONE, TWO, share)


def test_places_are_blake2_so_that_every_process_has_the_same():
    # `printf r-1 | b2sum -l 64`, over 2^64.
    assert place("r-1") == 0x7D99A80E76BBAD0E / 2**64
    assert 0 <= place("\ud800") < 1


@pytest.mark.parametrize("key", ["r-{}", "{}-0123456789abcdef", "{:08x}"])
def test_the_canary_gets_its_share_of_ids_however_they_are_made(key):
    n, share = 20_000, 0.05
    taken = sum(route(share).choose(key.format(i)) is TWO for i in range(n))
    assert abs(taken - n * share) < 5 * (n * share * (1 - share)) ** 0.5  # five standard deviations


def test_without_an_id_chance_decides():
    taken = sum(route(0.5).choose("") is TWO for _ in range(1000))
    assert 400 < taken < 600


def test_an_id_stays_where_it_is_and_a_larger_share_only_adds():
    ids = [f"r-{i}" for i in range(1000)]
    small, large = ({i for i in ids if route(share).choose(i) is TWO} for share in (0.05, 0.2))
    assert small < large
    assert small == {i for i in ids if route(0.05).choose(i) is TWO}


def test_number_or_label_never_both():
    assert route().named(3, "") is THREE
    assert [route().named(0, label) for label in ("stable", "canary", "shadow")] == [ONE, TWO, THREE]
    assert route().named(9, "") is route().named(-1, "") is route().named(0, "latest") is None
    with pytest.raises(InvalidInput, match="version 1 and label 'canary'; set one of them"):
        route().named(1, "canary")


def test_a_label_whose_version_is_gone_has_nothing():
    assert Route({1: ONE}, {"stable": 1, "shadow": 3}, ONE).named(0, "shadow") is None
