"""Histograms against numpy on the values themselves."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.bench.percentiles import PERCENTILES, bucket_middle, distribution, percentiles_ns
from scripts.bench.scanning import BUCKET_COUNT, LATENESS, VALUE_BITS, bucket_of, count_value
from scripts.bench.tables import allocate

LARGEST = (1 << VALUE_BITS) - 1
RELATIVE_ERROR_MAX = 0.001

# Spread over all magnitudes, as latencies are: half of all uniform numbers would be within one power of two.
values_ns = st.integers(0, VALUE_BITS).flatmap(lambda bits: st.integers(0, (1 << bits) - 1))


@settings(deadline=None)
@given(values_ns)
def test_a_bucket_holds_values_within_a_thousandth(value: int) -> None:
    index = bucket_of(value)
    assert 0 <= index < BUCKET_COUNT
    assert abs(bucket_middle(index) - value) <= value * RELATIVE_ERROR_MAX


@settings(deadline=None)
@given(values_ns, values_ns)
def test_buckets_keep_the_order(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert bucket_of(low) <= bucket_of(high)


def test_the_last_bucket_takes_what_is_larger() -> None:
    assert bucket_of(LARGEST) == bucket_of(LARGEST + 1) == bucket_of(1 << 60) == BUCKET_COUNT - 1


@settings(max_examples=60, deadline=None)
@given(st.lists(values_ns, min_size=1, max_size=400))
def test_percentiles_agree_with_numpy(values: list[int]) -> None:
    tables = allocate(1, "/nowhere", b"", b"")
    for value in values:
        count_value(tables, LATENESS, value)
    found = percentiles_ns(tables.histograms[LATENESS], int(tables.least[LATENESS]), int(tables.most[LATENESS]))
    assert (found["count"], found["min"], found["max"]) == (len(values), min(values), max(values))
    for percentile in PERCENTILES:
        exact = float(np.percentile(values, percentile, method="inverted_cdf"))
        assert abs(found[f"p{percentile:g}"] - exact) <= exact * RELATIVE_ERROR_MAX


def test_negative_values_count_as_zero() -> None:
    tables = allocate(1, "/nowhere", b"", b"")
    count_value(tables, LATENESS, -5)
    assert tables.histograms[LATENESS, 0] == 1
    assert tables.least[LATENESS] == 0


def test_no_values_no_percentiles() -> None:
    tables = allocate(1, "/nowhere", b"", b"")
    assert percentiles_ns(tables.histograms[LATENESS], 0, 0) == {"count": 0}


def test_the_distribution_rises_to_one() -> None:
    tables = allocate(1, "/nowhere", b"", b"")
    for value in (1, 2, 200, 3_000_000):
        count_value(tables, LATENESS, value)
    values, shares = distribution(tables.histograms[LATENESS])
    assert values[:2] == [2.0, 200.0]
    assert shares == [0.5, 0.75, 1.0]
