"""Loss, gradients and logits are PEFT's with PEFT's weights, wherever PEFT is right; and where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptune.config import TaskType
from tasks.peft_pairs import DEEP, VECTORS, P, gradients, pair, run
from tasks.wide_models import (
    ENCODER_DECODERS,
    HIDDEN,
    LENGTHS,
    WITH_HEADS,
    close,
    labelled,
    padded,
    same_gradients,
    tokens,
)

PREFIXED = ("bert", "roberta", "electra", "gpt2", "llama", "qwen2")
BEHIND_VECTORS = ("bert", "roberta", "electra", "deberta")
SIZES = {"electra": {"embedding_size": HIDDEN}}
"""PEFT takes embeddings to be of the hidden size."""


def same_loss_and_gradients(mine: Any, theirs: Any, given: dict[str, Any]) -> tuple[Any, Any]:
    """Check both; the outputs."""
    found, wanted = mine(**given), run(theirs, **given)
    assert float(found.loss.detach()) == pytest.approx(float(wanted.loss.detach()), rel=1e-5)
    found.loss.backward()
    wanted.loss.backward()
    own, other = gradients(mine), gradients(theirs)
    assert same_gradients(own, other)
    largest = max(float(value.norm()) for value in other.values())
    assert float(other["embedding.weight"].norm()) > 1e-4 * largest
    return found, wanted


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("task", WITH_HEADS)
@pytest.mark.parametrize("name", PREFIXED)
def test_keys_and_values(name: str, task: TaskType, kind: str) -> None:
    """Padded on the right; an answer's places are compared where nothing is padded, see `test_losses`."""
    mine, theirs = pair(name, task, kind)
    given = labelled(name, task, lengths=[6] * 3 if task is TaskType.QUESTION_ANS else LENGTHS)
    found, wanted = same_loss_and_gradients(mine, theirs, given)
    keys = ("start_logits", "end_logits") if task is TaskType.QUESTION_ANS else ("logits",)
    for key in keys:
        chosen = ... if task is TaskType.SEQ_CLS else given["attention_mask"].bool()
        assert close(found[key][chosen], wanted[key][chosen])
    assert mine.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("task", [TaskType.TOKEN_CLS, TaskType.QUESTION_ANS, TaskType.FEATURE_EXTRACTION])
@pytest.mark.parametrize("name", BEHIND_VECTORS)
def test_vectors_before_an_encoder(name: str, task: TaskType, kind: str) -> None:
    """PEFT lets no label stand beside them."""
    mine, theirs = pair(name, task, kind, **SIZES.get(name, {}))
    given = labelled(name, task)
    text = {key: given[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found, wanted = mine(**text), run(theirs, **text)
    for key in ("logits", "start_logits", "last_hidden_state"):
        if found.get(key) is not None:
            assert wanted[key].shape[1] == P + text["input_ids"].shape[1]
            chosen = text["attention_mask"].bool()
            assert close(found[key][chosen], wanted[key][:, P:][chosen])
    if task is TaskType.TOKEN_CLS:
        with pytest.raises(ValueError, match="batch_size"):
            run(theirs, **given)


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama"])
def test_features_behind_keys_and_values(name: str, kind: str) -> None:
    mine, theirs = pair(name, TaskType.FEATURE_EXTRACTION, kind)
    given = labelled(name, TaskType.FEATURE_EXTRACTION)
    chosen = given["attention_mask"].bool()
    with torch.no_grad():
        found, wanted = mine(**given).last_hidden_state, run(theirs, **given).last_hidden_state
    assert close(found[chosen], wanted[chosen])


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_vectors_before_an_encoder_decoder(name: str, kind: str) -> None:
    mine, theirs = pair(name, TaskType.SEQ_2_SEQ_LM, kind)
    found, wanted = same_loss_and_gradients(mine, theirs, labelled(name, TaskType.SEQ_2_SEQ_LM))
    assert close(found.logits, wanted.logits)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
def test_a_pooler_on_virtual_tokens_where_it_is_asked_for(name: str, kind: str, side: str) -> None:
    """`pool_virtual_tokens` is PEFT's classifier: it reads virtual token 0. By itself it reads the text's [CLS].

    PEFT has padding on the left between the prompt and the text; here a row does not know how it was padded.
    """
    task = TaskType.SEQ_CLS
    sizes = SIZES.get(name, {})
    mine, theirs = pair(name, task, kind, own={"pool_virtual_tokens": True}, **sizes)
    found, _ = same_loss_and_gradients(mine, theirs, labelled(name, task))
    with torch.no_grad():
        assert close(mine(**labelled(name, task, side=side)).logits, found.logits)
        typed = labelled(name, task)
        typed["token_type_ids"] = torch.arange(9).expand(5, -1) // 4 % 2
        assert close(mine(**typed).logits, run(theirs, **typed).logits)
        assert not close(mine(**typed).logits, found.logits)
        reading, theirs = pair(name, task, kind, **sizes)
        assert not close(reading(**labelled(name, task)).logits, run(theirs, **labelled(name, task)).logits, 0.05)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_decoders_classifier_where_peft_is_wrong(name: str) -> None:
    """Behind vectors PEFT's looks for the last token by ids that it does not pass: it reads padding."""
    task = TaskType.SEQ_CLS
    mine, theirs = pair(name, task, "table")
    row = tokens(5, seed=1)[None]
    (ids, mask), labels = padded([row[0], tokens(9, seed=2)], "right"), torch.tensor([1, 0])
    with torch.no_grad():
        alone = mine(row).logits
        assert close(alone, run(theirs, input_ids=row, attention_mask=torch.ones_like(row)).logits)
        assert close(mine(ids, mask, labels=labels).logits[:1], alone)
        assert not close(run(theirs, input_ids=ids, attention_mask=mask).logits[:1], alone, 0.05)


@pytest.mark.parametrize("kind", ["table", "prefix"])
def test_left_padding_of_an_encoder_where_peft_is_wrong(kind: str) -> None:
    """Its positions count the padding, so that a row is another one."""
    mine, theirs = pair("bert", TaskType.TOKEN_CLS, kind)
    right, left = (labelled("bert", TaskType.TOKEN_CLS, side=side) for side in ("right", "left"))

    def of_the_text(model: Any, given: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            logits = run(model, input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
        mask = given["attention_mask"].bool()
        return logits[:, -mask.shape[1] :][mask]

    assert close(of_the_text(mine, left), of_the_text(mine, right))
    assert close(of_the_text(mine, right), of_the_text(theirs, right))
    assert not close(of_the_text(theirs, left), of_the_text(theirs, right), 0.05)
