"""Batches within a budget of tokens: every row once an epoch, the same number of batches in every epoch."""

from __future__ import annotations

import random

import pytest
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ptune.data.batching import TokenBudgetBatchSampler
from ptune.errors import ConfigError


def lengths_of(count: int, seed: int = 0) -> list[int]:
    source = random.Random(seed)
    return [source.randint(3, 60) for _ in range(count)]


def epoch_of(sampler: TokenBudgetBatchSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    budget=st.integers(40, 200),
    seed=st.integers(0, 9),
    shuffle=st.booleans(),
    multiple_of=st.integers(1, 3),
)
def test_every_row_once_within_the_budget(
    lengths: list[int], budget: int, seed: int, shuffle: bool, multiple_of: int
) -> None:
    sampler = TokenBudgetBatchSampler(lengths, budget, seed=seed, shuffle=shuffle, multiple_of=multiple_of)
    for epoch in range(3):
        batches = epoch_of(sampler, epoch)
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert all(0 < sum(lengths[row] for row in batch) <= budget for batch in batches)
        assert len(batches) == len(sampler)
        assert len(batches) % multiple_of == 0 or len(batches) == len(lengths)
    assert sampler.rows == len(lengths)
    assert sampler.fill == pytest.approx(sum(lengths) / (len(sampler) * budget))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = lengths_of(200)
    one, other = (TokenBudgetBatchSampler(lengths, 256, seed=4) for _ in range(2))
    assert epoch_of(one, 1) == epoch_of(other, 1)
    epoch_of(other, 0)
    assert epoch_of(other, 1) == epoch_of(one, 1), "whatever came before"
    assert epoch_of(one, 0) != epoch_of(one, 1)
    assert epoch_of(one, 0) != epoch_of(TokenBudgetBatchSampler(lengths, 256, seed=5), 0)


def test_epochs_mix_the_rows_of_batches() -> None:
    sampler = TokenBudgetBatchSampler(lengths_of(600), 256, seed=1)
    first, second = ({frozenset(batch) for batch in epoch_of(sampler, epoch)} for epoch in (0, 1))
    assert len(first & second) < len(first) / 10


def test_batches_are_nearly_full() -> None:
    # No packing can do with fewer batches than the tokens fill.
    lengths = lengths_of(2000)
    sampler = TokenBudgetBatchSampler(lengths, 512, seed=0)
    assert len(sampler) <= 1.02 * -(-sum(lengths) // 512)


def test_length_and_place_are_not_linked() -> None:
    # Taken longest first, the first batches would hold few long rows and the last ones many short rows.
    lengths = lengths_of(2000)
    counts = sorted(len(batch) for batch in TokenBudgetBatchSampler(lengths, 600, seed=0))
    assert counts[-1] < 3 * counts[1], "the smallest one apart, which nothing was left to fill"


def test_unshuffled_batches_keep_to_the_order_of_the_data() -> None:
    sampler = TokenBudgetBatchSampler([5, 5, 5, 5], 10, seed=0, shuffle=False)
    assert epoch_of(sampler, 0) == epoch_of(sampler, 1) == [[0, 1], [2, 3]]


def test_drop_last_leaves_out_the_emptiest_batch_that_is_not_full() -> None:
    def dropping(lengths: list[int]) -> TokenBudgetBatchSampler:
        return TokenBudgetBatchSampler(lengths, 10, seed=0, shuffle=False, drop_last=True)

    assert list(dropping([5, 5, 5])) == [[0, 1]]
    assert list(dropping([5, 5, 5, 5])) == [[0, 1], [2, 3]]
    assert list(dropping([5])) == [[0]]
    shuffled = TokenBudgetBatchSampler([5, 5, 5], 10, seed=0, drop_last=True)
    left = [{0, 1, 2} - {row for batch in epoch_of(shuffled, epoch) for row in batch} for epoch in range(20)]
    assert {len(one) for one in left} == {1}
    assert len(set().union(*left)) == 3, "not always the same row"


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("count", [2, 7, 50])
def test_processes_share_the_batches(count: int, drop_last: bool) -> None:
    lengths = lengths_of(count)
    sampler = TokenBudgetBatchSampler(lengths, 60, seed=3, drop_last=drop_last, multiple_of=2)
    shares = [list(BatchSamplerShard(sampler, num_processes=2, process_index=index)) for index in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(BatchSamplerShard(sampler, num_processes=2, process_index=1))
    rows = [row for share in shares for batch in share for row in batch]
    assert len(set(rows)) == len(rows), "no row twice"
    assert drop_last or len(rows) == count


def test_skipping_in_a_resumed_epoch() -> None:
    """As Trainer resumes: accelerate's loader, a few batches skipped, in an epoch that is not the first."""
    sampler = TokenBudgetBatchSampler(lengths_of(50), 100, seed=3)
    loader = prepare_data_loader(DataLoader(range(50), batch_sampler=sampler, collate_fn=list), put_on_device=False)
    loader.set_epoch(2)
    whole = list(loader)
    assert len(whole) == len(loader) == len(sampler)
    sampler.set_epoch(2)
    assert list(skip_first_batches(loader, 4)) == whole[4:]


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"row 2 has 14 tokens, more than tokens_per_batch=10.*at least 14.*max_leng"):
        TokenBudgetBatchSampler([3, 12, 14], 10, seed=0)
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        TokenBudgetBatchSampler([1], 0, seed=0)
    with pytest.raises(ConfigError, match="no rows"):
        TokenBudgetBatchSampler([], 10, seed=0)
