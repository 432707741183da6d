"""Batches that hold about the same number of tokens, for packed training.

A batch of so many rows costs what its rows happen to hold; a batch of so many tokens costs the same every time, and may
be as large as the memory allows. Rows are put in by best fit (each into the batch where it leaves the least room),
taken in random order rather than longest first: sorted, some batches would hold long rows alone and others short ones.

The length of the schedule, the steps to checkpoints and what a resumed run skips all count batches, so every epoch must
have the same number of them. Packed anew each epoch there would be one more or one less. So the packing is made once,
from the seed, and taken for a pattern of lengths: each epoch deals the rows of a length anew to the places of that
length, and puts the batches into a new order. A batch's tokens stay what they were; its company changes.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from ptune.errors import ConfigError

OPEN_BATCHES = 64
"""Batches that are filled at a time. More fill hardly better and mix the order of unshuffled rows up."""


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """A batch sampler for `torch.utils.data.DataLoader` that fills a budget of tokens.

    Every row comes once an epoch; the order is a function of seed and epoch alone.

    Args:
        lengths: Tokens of each row of the data set.
        tokens_per_batch: The most tokens a batch holds.
        seed: Makes the packing and the order.
        shuffle: False leaves rows and batches in the order of the data, as far as the filling allows.
        drop_last: Leave out the emptiest batch, where it could have held one row more, and in every process batches
            that not all of them would get.
        multiple_of: Processes that share the batches: the largest batches are halved until each gets the same number
            and no row comes twice.

    Raises:
        ConfigError: A row alone is longer than the budget, or there are no rows.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        tokens_per_batch: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
        multiple_of: int = 1,
    ) -> None:
        _check(lengths, tokens_per_batch)
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.tokens_per_batch = tokens_per_batch
        self.epoch = 0
        order = list(range(len(lengths)))
        if shuffle:
            random.Random(seed).shuffle(order)
        full = _packed(lengths, order, tokens_per_batch)
        batches = _without_emptiest(full, lengths, tokens_per_batch) if drop_last else _halved(full, multiple_of)
        self._batches = batches
        self._places = [[lengths[row] for row in batch] for batch in batches]
        self._rows: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            self._rows.setdefault(length, []).append(row)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    @property
    def rows(self) -> int:
        """Rows an epoch."""
        return sum(map(len, self._places))

    def __len__(self) -> int:
        """Batches an epoch, the same in every epoch."""
        return len(self._places)

    @property
    def fill(self) -> float:
        """The share of the budget that a batch holds in the mean."""
        return sum(map(sum, self._places)) / (len(self) * self.tokens_per_batch)

    def __iter__(self) -> Iterator[list[int]]:
        if not self.shuffle:
            yield from (list(batch) for batch in self._batches)
            return
        source = random.Random(f"{self.seed} {self.epoch}")
        pools = {length: source.sample(rows, len(rows)) for length, rows in self._rows.items()}
        batches = [[pools[length].pop() for length in places] for places in self._places]
        source.shuffle(batches)
        yield from batches


def _check(lengths: Sequence[int], budget: int) -> None:
    if budget < 1:
        raise ConfigError(f"tokens_per_batch must be at least 1, not {budget}.")
    if not lengths:
        raise ConfigError("there are no rows to make batches of.")
    longest = max(lengths)
    if longest > budget:
        raise ConfigError(
            f"row {lengths.index(longest)} has {longest} tokens, more than tokens_per_batch={budget}.",
            hint=f"Set tokens_per_batch to at least {longest}, or cut the rows with max_length={budget}.",
        )


def _packed(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[list[int]]:
    """The rows in batches of at most `budget` tokens, by best fit in the order given."""
    batches: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # of each open batch: the room left, and its number; the fullest first
    for row in order:
        length = lengths[row]
        at = bisect_left(rooms, (length, -1))
        if at < len(rooms):
            room, number = rooms.pop(at)
        else:
            if len(rooms) == OPEN_BATCHES:
                rooms.pop(0)
            room, number = budget, len(batches)
            batches.append([])
        batches[number].append(row)
        if room > length:
            insort(rooms, (room - length, number))
    return batches


def _without_emptiest(batches: list[list[int]], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """All batches but the emptiest one, unless that is full or the only one."""
    tokens = [sum(lengths[row] for row in batch) for batch in batches]
    emptiest = tokens.index(min(tokens))
    if len(batches) == 1 or tokens[emptiest] + min(lengths) > budget:
        return batches
    return batches[:emptiest] + batches[emptiest + 1 :]


def _halved(batches: list[list[int]], multiple_of: int) -> list[list[int]]:
    """The batches, those of most rows halved until their number is a multiple, or nothing is left to halve."""
    batches = list(batches)
    while len(batches) % multiple_of:
        largest = max(range(len(batches)), key=lambda number: len(batches[number]))
        whole = batches[largest]
        if len(whole) == 1:
            break
        batches[largest : largest + 1] = [whole[::2], whole[1::2]]
    return batches
