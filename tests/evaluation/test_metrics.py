"""Every metric equals an independent computation: by another library, or by the plainest loop over the rows."""

from __future__ import annotations

import json
import random
import re
import string
from collections import Counter

import numpy as np
import pytest

from ptune.choices import METRIC_NAMES
from ptune.data.example import Example
from ptune.evaluation.items import Item
from ptune.evaluation.metrics import METRICS, with_keys
from ptune.evaluation.outcomes import Outcome
from ptune.evaluation.text_metrics import exact_match, normalized, token_f1

ROWS = 80
WORDS = (
    *("the", "a", "restaurant", "by", "river", "serves", "cheap", "Italian", "food,", "and", "it's", "An", "café"),
    *("family-friendly!", "average", "near", "Crowne"),
)
LABELS = ("negative", "positive", "no opinion at all")


def items_and_answers(seed: int = 0) -> tuple[list[Item], list[Outcome]]:
    """Items with one to four references, and answers that are near to one of them."""
    draw = random.Random(seed)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 14))).capitalize() + draw.choice(["", ".", " !"])

    items, outcomes = [], []
    for number in range(ROWS):
        references = [sentence() for _ in range(draw.randint(1, 4))]
        words = draw.choice(references).split()
        answer = draw.choice([" ".join(words), " ".join(words[1:] + draw.choices(WORDS, k=2)), sentence(), ""])
        items.append(Item(tuple(Example(instruction=str(number), output=one) for one in references)))
        outcomes.append(Outcome(answer=answer, loss=draw.uniform(1, 9), tokens=draw.randint(1, 9), right=1))
    return items, outcomes


def score(name: str, items: list[Item], outcomes: list[Outcome], labels: tuple[str, ...] = ()) -> float:
    return METRICS[name].count(items, outcomes, labels).whole


def test_every_name_has_a_metric():
    assert tuple(METRICS) == METRIC_NAMES


def test_loss_perplexity_and_token_accuracy_weigh_every_token_the_same():
    items, outcomes = items_and_answers()
    tokens = sum(one.tokens for one in outcomes)
    loss = sum(one.loss for one in outcomes) / tokens
    assert score("loss", items, outcomes) == pytest.approx(loss)
    assert score("perplexity", items, outcomes) == pytest.approx(np.exp(loss))
    assert score("token_accuracy", items, outcomes) == pytest.approx(sum(one.right for one in outcomes) / tokens)


def squad_normalized(text: str) -> list[str]:
    """As the evaluation script of SQuAD 1.1 does it, step by step."""
    lowered = text.lower()
    bare = "".join(sign for sign in lowered if sign not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def squad_f1(answer: str, reference: str) -> float:
    found, wanted = squad_normalized(answer), squad_normalized(reference)
    same = sum((Counter(found) & Counter(wanted)).values())
    if same == 0:
        return float(found == wanted == [])
    precision, recall = same / len(found), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def test_exact_match_and_f1_are_squads():
    items, outcomes = items_and_answers()
    pairs = [(one.answer or "", item.references) for item, one in zip(items, outcomes, strict=True)]
    exact = [
        any(squad_normalized(answer) == squad_normalized(one) for one in references) for answer, references in pairs
    ]
    f1 = [max(squad_f1(answer, one) for one in references) for answer, references in pairs]
    assert 0.1 < np.mean(exact) < 0.9
    assert score("exact_match", items, outcomes) == pytest.approx(np.mean(exact))
    assert score("f1", items, outcomes) == pytest.approx(np.mean(f1))


def test_chinese_characters_are_words():
    assert normalized("一家便宜的 Pub。") == "一 家 便 宜 的 pub。"
    assert exact_match("便宜的", ["便 宜的"]) == 1
    assert token_f1("便宜的餐厅", ["便宜餐厅"]) == pytest.approx(2 * 4 / 9)


def plain_rouge(kind: str, answer: str, reference: str) -> float:
    found, wanted = ([word for word in re.split(r"[^a-z0-9]+", text.lower()) if word] for text in (answer, reference))
    if kind == "rougeL":
        table = np.zeros((len(found) + 1, len(wanted) + 1), int)
        for i, one in enumerate(found):
            for j, other in enumerate(wanted):
                table[i + 1, j + 1] = table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
        shared, left, right = table[-1, -1], len(found), len(wanted)
    else:
        size = int(kind[-1])
        grams = [Counter(zip(*(words[at:] for at in range(size)), strict=False)) for words in (found, wanted)]
        shared, left, right = (grams[0] & grams[1]).total(), grams[0].total(), grams[1].total()
    return 2 * shared / (left + right) if shared else 0.0


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_that_of_a_plain_count(kind: str):
    pytest.importorskip("rouge_score")
    items, outcomes = items_and_answers()
    wanted = [
        max(plain_rouge(kind, one.answer or "", reference) for reference in item.references)
        for item, one in zip(items, outcomes, strict=True)
    ]
    assert score(kind, items, outcomes) == pytest.approx(np.mean(wanted))


def test_rouge_sees_scripts_that_the_package_drops():
    pytest.importorskip("rouge_score")
    items = [Item((Example(instruction="q", output=text),)) for text in ("Дешёвый ресторан у реки", "便宜的餐厅")]
    same = [Outcome(answer=item.references[0]) for item in items]
    assert score("rouge1", items, same) == 1
    assert score("rougeL", items, [Outcome(answer="дешёвый ресторан"), Outcome(answer="便宜")]) == pytest.approx(
        (2 * 2 / 6 + 2 * 2 / 7) / 2
    )


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_bleu_and_chrf_are_sacrebleus_own(name: str):
    sacrebleu = pytest.importorskip("sacrebleu")
    items, outcomes = items_and_answers()
    answers = [one.answer or "" for one in outcomes]
    most = max(len(item.references) for item in items)
    by_number = [[item.references[at] if at < len(item.references) else None for item in items] for at in range(most)]
    corpus = sacrebleu.corpus_bleu if name == "bleu" else sacrebleu.corpus_chrf
    assert score(name, items, outcomes) == pytest.approx(corpus(answers, by_number).score)


def test_bleu_is_that_of_another_library():
    pytest.importorskip("sacrebleu")
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    draw = random.Random(3)
    words = ["river", "cheap", "food", "near", "pub", "good"]  # of which both tokenizers make the same tokens
    references = [[" ".join(draw.choices(words, k=9)) for _ in range(3)] for _ in range(ROWS)]
    answers = [" ".join(one[0].split()[:7] + draw.choices(words, k=3)) for one in references]
    items = [Item(tuple(Example(instruction="q", output=text) for text in one)) for one in references]
    outcomes = [Outcome(answer=one) for one in answers]
    wanted = bleu.corpus_bleu([[text.split() for text in one] for one in references], [one.split() for one in answers])
    assert score("bleu", items, outcomes) == pytest.approx(100 * wanted)


def labelled(seed: int = 0) -> tuple[list[Item], list[Outcome]]:
    draw = random.Random(seed)
    items = [Item((Example(instruction=str(at), output=draw.choice(LABELS[:2] + LABELS)),)) for at in range(ROWS)]
    outcomes = [Outcome(labels=tuple(draw.uniform(-9, -1) for _ in LABELS)) for _ in items]
    return items, outcomes


@pytest.mark.parametrize("labels", [LABELS, (*LABELS[:2], LABELS[2], "never")], ids=["all occur", "one never"])
@pytest.mark.parametrize("ending", ["", "_norm"])
def test_accuracy_and_macro_f1_are_scikit_learns(ending: str, labels: tuple[str, ...]):
    sklearn = pytest.importorskip("sklearn.metrics")
    items, outcomes = labelled()
    outcomes = [Outcome(labels=(*one.labels, -99.0)[: len(labels)]) for one in outcomes if one.labels]
    letters = [len(label) if ending else 1 for label in labels]
    chosen = [labels[int(np.argmax(np.array(one.labels) / letters))] for one in outcomes]
    wanted = [item.references[0] for item in items]
    assert score(f"accuracy{ending}", items, outcomes, labels) == pytest.approx(sklearn.accuracy_score(wanted, chosen))
    f1 = sklearn.f1_score(wanted, chosen, average="macro", zero_division=0)
    assert score(f"macro_f1{ending}", items, outcomes, labels) == pytest.approx(f1)


def test_the_length_of_a_label_counts_where_it_is_asked_for():
    items = [Item((Example(instruction="q", output="no opinion at all"),))]
    outcomes = [Outcome(labels=(-4.0, -5.0, -6.0))]
    assert score("accuracy", items, outcomes, LABELS) == 0
    assert score("accuracy_norm", items, outcomes, LABELS) == 1


def test_json_metrics_are_those_of_a_plain_loop():
    draw = random.Random(0)

    def ticket() -> dict[str, object]:
        return {
            "intent": draw.choice("abc"),
            "order": draw.choice([None, 1, 2]),
            **({"x": 1} if draw.random() < 0.5 else {}),
        }

    expected = [ticket() for _ in range(ROWS)]
    answers = [
        draw.choice([json.dumps(one), json.dumps(ticket()), json.dumps(one)[:-1], "nothing"]) for one in expected
    ]
    items = [Item((Example(instruction="q", output=json.dumps(one)),)) for one in expected]
    outcomes = [Outcome(answer=one) for one in answers]
    valid = exact = right = keys = 0
    by_key: dict[str, list[bool]] = {}
    for answer, wanted in zip(answers, expected, strict=True):
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        valid += found is not None
        exact += found == wanted
        for key, value in wanted.items():
            hit = found is not None and key in found and found[key] == value
            right, keys = right + hit, keys + 1
            by_key.setdefault(key, []).append(hit)
    assert score("json_valid", items, outcomes) == pytest.approx(valid / ROWS)
    assert score("json_exact", items, outcomes) == pytest.approx(exact / ROWS)
    assert score("json_keys", items, outcomes) == pytest.approx(right / keys)
    metrics = with_keys(["json_valid", "json_keys"], items)
    assert [one.name for one in metrics[:2]] == ["json_valid", "json_keys"]
    assert {one.title: one.count(items, outcomes, ()).whole for one in metrics[2:]} == {
        f"{key} right": pytest.approx(np.mean(hits)) for key, hits in by_key.items()
    }
