"""A hundred loads and unloads of a real bundle: memory stays where it is. Takes about half a minute."""

from tests.reloads import memory_over_reloads


def test_a_hundred_reloads_leave_nothing_behind(tmp_path):
    sizes = memory_over_reloads(tmp_path, reloads=100)
    print(f"loaded {sizes.loaded:.0f} MB, unloaded {[round(size) for size in sizes.unloaded]} MB")
    # The graph has 20 MB; were a tenth of it left behind each time, these would lie 180 MB apart.
    assert sizes.loaded - sizes.unloaded[-1] > 15
    assert sizes.unloaded[-1] - sizes.unloaded[9] < 30
