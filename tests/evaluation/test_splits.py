"""The built-in lists of DAVIS."""

from uvos_jax.evaluation.splits import (
    DAVIS16,
    DAVIS17_VAL_EXTRA,
    TEMPORALLY_STABLE,
    counts_for_stability,
)


def test_davis_2016_has_thirty_and_twenty_sequences_that_share_none():
    assert len(DAVIS16["train"]) == 30
    assert len(DAVIS16["val"]) == 20
    assert not set(DAVIS16["train"]) & set(DAVIS16["val"])
    assert not any(name.endswith("*") for names in DAVIS16.values() for name in names)


def test_davis_2017_val_has_thirty():
    assert len({*DAVIS16["val"], *DAVIS17_VAL_EXTRA}) == 30


def test_stable_sequences_are_those_davis_flags_and_foreign_ones():
    assert len(TEMPORALLY_STABLE & set(DAVIS16["val"])) == 10
    assert len(TEMPORALLY_STABLE & set(DAVIS16["train"])) == 17
    assert counts_for_stability("blackswan")
    assert not counts_for_stability("dog")
    assert counts_for_stability("my-video")
