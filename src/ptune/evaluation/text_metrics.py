"""How near an answer comes to its references: exact match, token F1, ROUGE, BLEU and chrF.

Exact match and F1 are SQuAD's (Rajpurkar et al. 2016): lower case, without punctuation and articles; of several
references the nearest counts. ROUGE (Lin 2004) is the package rouge-score, the F-measure without stemming; BLEU
(Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's, over the whole data with all references of a row.

These were made for languages with blanks between words. Chinese characters count as words each: in F1, in ROUGE, and in
BLEU by sacrebleu's own `zh`. rouge-score drops every letter that is not ASCII; where references have letters of other
scripts, words of any script are taken instead.
"""

from __future__ import annotations

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ptune.errors import ConfigError
from ptune.internals import statistics_of

_HAN = "\u3400-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LATIN = "\u024f"
"""The last letter of the Latin alphabet's extensions."""
_PACKAGES = {"rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu"}

Pair = tuple[str, Sequence[str]]
"""An answer and its references."""


def normalized(text: str) -> str:
    """A text as SQuAD compares it, with blanks around Chinese characters."""
    bare = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(rf"([{_HAN}])", r" \1 ", _ARTICLES.sub(" ", bare)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer is one of the references."""
    return float(normalized(answer) in map(normalized, references))


def token_f1(answer: str, references: Sequence[str]) -> float:
    """The harmonic mean of precision and recall over tokens; of the best reference."""
    return max(_f1(normalized(answer).split(), normalized(one).split()) for one in references)


def _f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted))


class _Words:
    """A tokenizer for rouge-score that keeps the words of every script."""

    def tokenize(self, text: str) -> list[str]:
        """Words in lower case."""
        return _WORDS.findall(text.lower())


def rouge(pairs: Sequence[Pair], kind: str) -> np.ndarray:
    """`(N,)`: the F-measure of each answer, of its best reference.

    Args:
        pairs: `N` answers with their references.
        kind: `rouge1`, `rouge2` or `rougeL`.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], tokenizer=_Words() if _beyond_latin(pairs) else None)
    return np.array([scorer.score_multi(references, answer)[kind].fmeasure for answer, references in pairs])


def corpus_metric(name: str, pairs: Sequence[Pair]) -> tuple[np.ndarray, Callable[[np.ndarray], float]]:
    """BLEU or chrF in two steps: what is counted in each row, and the score of summed counts.

    Args:
        name: `bleu` or `chrf`.
        pairs: `N` answers with their references.

    Returns:
        `(N, k)` counts, and a function from their sum `(k,)` to points from 0 to 100.
    """
    from sacrebleu import BLEU, CHRF

    chinese = any(re.search(rf"[{_HAN}]", one) for _, references in pairs for one in references)
    metric: Any = BLEU(tokenize="zh" if chinese else "13a") if name == "bleu" else CHRF()
    most = max((len(references) for _, references in pairs), default=0)
    # sacrebleu takes the first references of all rows, then the second ones…; None where a row has none.
    by_number = [[_at(references, number) for _, references in pairs] for number in range(most)]
    counts, score = statistics_of(metric, [answer for answer, _ in pairs], by_number)
    return np.array(counts, dtype=np.float64), score


def _at(references: Sequence[str], number: int) -> str | None:
    return references[number] if number < len(references) else None


def _beyond_latin(pairs: Iterable[Pair]) -> bool:
    return any(sign.isalpha() and sign > _LATIN for _, references in pairs for one in references for sign in one)


def missing_package(metric: str) -> str | None:
    """The package that a metric needs, where it is not installed."""
    package = next((name for start, name in _PACKAGES.items() if metric.startswith(start)), None)
    return package if package is not None and importlib.util.find_spec(package) is None else None


def check_packages(metrics: Iterable[str]) -> None:
    """Raise `ConfigError` for a metric whose package is not installed."""
    for metric in metrics:
        if (package := missing_package(metric)) is not None:
            raise ConfigError(
                f"the metric {metric} needs the package {package.replace('_', '-')}.",
                hint="Install it with: pip install 'ptune[evaluate]'.",
            )
