"""The demo's data: made by its script alone, settled by its text, and with held-out rows that are not copies."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from ptune.demo import phrases, tickets
from ptune.demo.overlap import nearest_similarity, similarity, words
from ptune.demo.phrases import Pool

ORDER = re.compile(r"\b[A-H]-\d{4}\b")
FIELDS = {
    "intent": {"refund", "cancel", "delivery", "repair", "invoice"},
    "product": {"kettle", "lamp", "laptop", "phone", "jacket", "chair"},
    "urgency": {"urgent", "normal"},
}

# What a careful reader goes by, written without a look at the generator's tables.
PRODUCT_WORDS = {name: name for name in FIELDS["product"]}
URGENCY_WORDS = {"urgent": r"urgent|today|soon as possible"}
# In this order: the first intent whose words occur.
INTENT_WORDS = {
    "invoice": r"invoice|receipt|\bbill\b",
    "repair": r"repair|\bfix|mend",
    "refund": r"refund|money|pay me back|pay one back|extra payment",
    "cancel": r"cancel|call off|changed my mind|off my order|not (send|ship|want)|stop the|from being sent",
    "delivery": r"deliver|arriv|wait|wh[er]{3}|c[ao]me|courier|driver|parcel|package|ship|tracking|overdue|sign of"
    r"|turned|would be here",
}


def load(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def unseen_ngram_share(heldout: Sequence[str], train: Sequence[str], size: int) -> float:
    """The share of the `size`-word sequences in `heldout` messages that occur in no `train` message."""
    known = {gram for message in train for gram in _ngrams(message, size)}
    grams = [gram for message in heldout for gram in _ngrams(message, size)]
    return sum(gram not in known for gram in grams) / len(grams) if grams else 0.0


def _ngrams(message: str, size: int) -> list[tuple[str, ...]]:
    tokens = re.findall(r"[a-z']+", ORDER.sub(" ", message).lower())
    return [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]


@pytest.fixture(scope="module")
def train() -> list[dict[str, str]]:
    return load(tickets.TRAIN_FILE)


@pytest.fixture(scope="module")
def heldout() -> list[dict[str, str]]:
    return load(tickets.HELDOUT_FILE)


def pools() -> list[Pool]:
    grouped = [*phrases.PRODUCTS.values(), *phrases.REQUESTS.values(), *phrases.URGENCIES.values()]
    single = [phrases.ORDERS, phrases.INLINE_ORDERS, phrases.NO_ORDERS, phrases.ASIDES]
    return [*grouped, *single, phrases.GREETINGS, phrases.CLOSINGS, phrases.NAMES]


def test_committed_files_are_what_the_script_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = tickets.TRAIN_FILE.read_bytes(), tickets.HELDOUT_FILE.read_bytes()
    monkeypatch.setattr(tickets, "TRAIN_FILE", tmp_path / "train.jsonl")
    monkeypatch.setattr(tickets, "HELDOUT_FILE", tmp_path / "heldout.jsonl")
    assert tickets.main() == 0
    assert ((tmp_path / "train.jsonl").read_bytes(), (tmp_path / "heldout.jsonl").read_bytes()) == committed


def test_the_hash_seed_does_not_matter() -> None:
    code = "from ptune.demo.tickets import build, render; print([render(rows) for rows in build()])"
    digests = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        digests.add(run.stdout)
    assert len(digests) == 1


def test_making_the_data_loads_no_torch() -> None:
    code = "import sys, ptune.demo.tickets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sizes_columns_and_balance(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    assert len(train) >= 600
    assert len(heldout) >= 150
    for rows in (train, heldout):
        assert all(list(row) == ["instruction", "input", "output"] and row["input"] == "" for row in rows)
        answers = [json.loads(row["output"]) for row in rows]
        for field, labels in FIELDS.items():
            counts = Counter(answer[field] for answer in answers)
            assert set(counts) == labels
            assert min(counts.values()) > 0.7 * len(rows) / len(labels), counts
        assert 0.15 < sum(answer["order"] == "none" for answer in answers) / len(rows) < 0.35


def test_answers_are_compact_json_in_one_key_order(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    for row in train + heldout:
        ticket = json.loads(row["output"])
        assert list(ticket) == ["intent", "product", "urgency", "order"]
        assert row["output"] == json.dumps(ticket, separators=(",", ":"))


def test_the_order_number_is_the_one_in_the_text(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    for row in train + heldout:
        order = json.loads(row["output"])["order"]
        assert ORDER.findall(row["instruction"]) == ([] if order == "none" else [order])


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_careful_reader_gets_every_ticket(split: str, request: pytest.FixtureRequest) -> None:
    for row in request.getfixturevalue(split):
        text, ticket = row["instruction"].lower(), json.loads(row["output"])
        assert [label for label, cue in PRODUCT_WORDS.items() if re.search(cue, text)] == [ticket["product"]], text
        cues = [label for label, cue in URGENCY_WORDS.items() if re.search(cue, text)] or ["normal"]
        assert cues == [ticket["urgency"]], text
        intent = next((label for label, cue in INTENT_WORDS.items() if re.search(cue, text)), None)
        assert intent == ticket["intent"], text


def test_messages_read_as_english(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    for row in train + heldout:
        text = row["instruction"]
        assert text == " ".join(text.split()), text
        assert not re.search(r"[{}]", text), text
        assert len(text.split()) <= 40


def test_no_held_out_message_is_near_a_training_one(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    def bag(text: str) -> set[str]:
        return set(re.findall(r"[a-z']+", ORDER.sub("", text).lower()))

    messages = [row["instruction"] for row in train + heldout]
    assert len(set(messages)) == len(messages)
    known = [bag(row["instruction"]) for row in train]
    for row in heldout:
        mine = bag(row["instruction"])
        assert max(len(mine & other) / len(mine | other) for other in known) < tickets.MAX_SIMILARITY, row


def test_order_numbers_are_never_used_twice(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    orders = [order for row in train + heldout for order in ORDER.findall(row["instruction"])]
    digits = [order[2:] for order in orders]
    assert len(set(digits)) == len(digits) > 500


def test_held_out_wording_is_largely_new(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    seen, fresh = [row["instruction"] for row in train], [row["instruction"] for row in heldout]
    assert unseen_ngram_share(fresh, seen, 4) > 0.4
    assert unseen_ngram_share(seen, seen, 4) == 0


def test_held_out_phrases_stay_out_of_training(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    seen = " | ".join(row["instruction"].lower() for row in train)
    fresh = " | ".join(row["instruction"].lower() for row in heldout)
    used = []
    for request in (request for pool in phrases.REQUESTS.values() for request in pool.heldout):
        pattern = re.escape(request.format(p="@").lower()).replace("@", r"[^|.?!]{3,40}?")
        assert not re.search(pattern, seen), request
        used.append(re.search(pattern, fresh) is not None)
    assert sum(used) / len(used) > 0.8
    for label, pool in phrases.PRODUCTS.items():
        for phrase in pool.heldout:
            assert not re.search(rf"\b{re.escape(phrase)}\b", seen), (label, phrase)


@pytest.mark.parametrize("pool", pools(), ids=lambda pool: pool.common[0][:20])
def test_a_phrase_is_shared_or_held_out_not_both(pool: Pool) -> None:
    assert not (set(pool.common) & set(pool.heldout)) - {""}
    for members in (pool.common, pool.heldout):
        named = [phrase for phrase in members if phrase]
        assert len(set(named)) == len(named)


def test_similarity_is_jaccard_without_order_numbers() -> None:
    left, right = words("Please refund the lamp (order A-1234)."), words("please REFUND my lamp, order B-9999!")
    assert left == {"please", "refund", "the", "lamp", "order"}
    assert similarity(left, right) == pytest.approx(4 / 6)
    assert similarity(left, left) == 1.0
    assert nearest_similarity(left, [right, words("nothing alike")]) == pytest.approx(4 / 6)
    assert nearest_similarity(left, []) == 0.0


def test_ngram_share_counts_sequences() -> None:
    assert unseen_ngram_share(["a b c d"], ["x a b c"], 2) == pytest.approx(1 / 3)
    assert unseen_ngram_share(["a"], ["x"], 2) == 0.0
