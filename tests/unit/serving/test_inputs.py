import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InvalidInput
from serving.inputs import check_dtype, from_bytes, from_numbers
from serving.manifest import InputSpec

IMAGES = InputSpec(dtype="uint8", shape=(2, 3), meaning="image")
FEATURES = InputSpec(dtype="float32", shape=(4,), meaning="features")


def test_bytes_become_the_array_they_came_from_without_a_copy():
    x = np.arange(30, dtype=np.uint8).reshape(5, 2, 3)
    data = x.tobytes()
    read = from_bytes(IMAGES, [5, 2, 3], data)
    np.testing.assert_array_equal(read, x)
    assert np.shares_memory(read, np.frombuffer(data, np.uint8))


def test_float_bytes_are_little_endian():
    x = np.array([[1.5, -2.0, 3e30, 0.0]], "<f4")
    np.testing.assert_array_equal(from_bytes(FEATURES, [1, 4], x.tobytes()), x)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ([2, 3], "shape [2, 3]"),
        ([1, 2, 3, 1], "shape [1, 2, 3, 1]"),
        ([], "shape []"),
        ([1, 3, 2], "rows have shape [3, 2]"),
        ([0, 2, 3], "0 rows"),
        ([-1, 2, 3], "-1 rows"),
        ([2, 2, 3], "takes 12 bytes, got 6"),
        ([2**62, 2, 3], "got 6"),
        ([1] * 1000, "..."),
    ],
)
def test_a_wrong_shape_is_named_and_so_is_the_right_one(shape, says):
    with pytest.raises(InvalidInput) as caught:
        from_bytes(IMAGES, shape, bytes(6))
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_bad_row_is_named(bad):
    x = np.zeros((5, 4), np.float32)
    x[2, 1] = x[4, 0] = bad
    with pytest.raises(InvalidInput, match=r"row 2 has NaN or infinity \(2 such rows of 5\)"):
        from_bytes(FEATURES, x.shape, x.tobytes())
    with pytest.raises(InvalidInput, match="row 2"):
        from_numbers(FEATURES, x.shape, x.ravel().tolist())


def test_large_values_whose_sum_overflows_are_fine():
    x = np.full((3, 4), np.finfo(np.float32).max, np.float32)
    np.testing.assert_array_equal(from_bytes(FEATURES, x.shape, x.tobytes()), x)


def test_infinities_that_cancel_are_still_found():
    x = np.array([[np.inf, -np.inf, 0, 0]], np.float32)
    with pytest.raises(InvalidInput, match="row 0"):
        from_bytes(FEATURES, x.shape, x.tobytes())


@pytest.mark.parametrize("bad", [-1.0, 256.0, 0.5])
def test_numbers_for_a_uint8_model_must_be_whole_and_in_range(bad):
    with pytest.raises(InvalidInput, match="row 1 has a value that is not a whole number from 0 to 255"):
        from_numbers(IMAGES, [2, 2, 3], [0] * 6 + [0, 0, bad, 0, 0, 0])


def test_numbers_become_the_models_dtype():
    x = from_numbers(IMAGES, [1, 2, 3], [0, 1, 2, 253, 254, 255])
    assert x.dtype == np.uint8
    assert x.ravel().tolist() == [0, 1, 2, 253, 254, 255]


def test_numbers_beyond_float32_are_refused():
    with pytest.raises(InvalidInput, match="row 0"):
        from_numbers(FEATURES, [1, 4], [1e300, 0, 0, 0])


def test_a_wrong_number_of_numbers_is_refused():
    with pytest.raises(InvalidInput, match="takes 8 values, got 7"):
        from_numbers(FEATURES, [2, 4], [0.0] * 7)


def test_a_wrong_dtype_is_named_with_the_right_one():
    with pytest.raises(InvalidInput, match="float32, the model takes uint8"):
        check_dtype(IMAGES, "float32")


@settings(deadline=None)
@given(shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), data=st.binary(max_size=64))
def test_any_shape_and_bytes_are_either_read_or_refused(shape, data):
    for spec in (IMAGES, FEATURES):
        try:
            x = from_bytes(spec, shape, data)
        except InvalidInput:
            continue
        assert x.tobytes() == data
        assert np.isfinite(x).all()
