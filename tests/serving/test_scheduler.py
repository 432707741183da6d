"""Requests of different prompts in one running batch say what each says alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from architectures import ARCHITECTURES, EOS, build
from prompting import draw, relative_error, texts
from ptune.errors import ModelError
from ptune.serving.engine.engine import BusyError, StoppedError
from ptune.serving.engine.requested import Sampling
from running_servers import SECONDS, Engine, prompts_on

NAMES = ("short", "long", None, "middle")
Make = Callable[..., Engine]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_row_says_what_generate_says(name: str, engine_of: Make) -> None:
    """Texts and prompts of many lengths; five rows at a time, so rows join those that run, and take their places."""
    engine = engine_of(name, rows=5)
    names = [name for name in (*NAMES, "deep") if name in engine.prompts]
    asked = [
        (names[at % len(names)], engine.job(text, names[at % len(names)], max_new_tokens=2 + 5 * at % 19))
        for at, text in enumerate(texts([3, 7, 12, 1, 5, 9, 4, 8, 2, 6, 11, 10, 3, 1]))
    ]
    found = engine.ask(*(job for _, job in asked))
    assert found == [[engine.generated(job, prompt)] for prompt, job in asked]
    assert engine.scheduler.running == engine.scheduler.waiting == engine.scheduler.cache_bytes == 0


@pytest.mark.parametrize(("name", "alone"), [("llama", False), ("bloom", False), ("gemma3", False), ("mamba", True)])
def test_which_models_share_a_batch(name: str, alone: bool, engine_of: Make) -> None:
    assert (engine_of(name, start=False).scheduler.obstacle is not None) is alone


def test_what_generate_alone_can_do_is_left_to_it(engine_of: Make) -> None:
    model = build("llama")
    model.generation_config.suppress_tokens = list(range(3, 60))
    engine = engine_of(model=model)
    assert "suppress_tokens" in str(engine.scheduler.obstacle)
    job = engine.job([5, 9, 7], "short", logprobs=0)
    engine.ask(job)
    assert all(token >= 60 or token <= 2 for token in engine.tokens(job))
    assert engine.texts(job) == [engine.generated(job, "short")]


def test_a_request_joins_while_others_run(engine_of: Make) -> None:
    engine = engine_of(rows=4)
    first = engine.job(draw(1, 4)[0].tolist(), "long", max_new_tokens=80, ignore_eos=True)
    engine.scheduler.submit(first)
    wait_for(lambda: engine.scheduler.running == 1 and not engine.events.empty())
    late = [engine.job(draw(1, 20, seed=at)[0].tolist(), NAMES[at], max_new_tokens=6) for at in range(4)]
    assert engine.ask(*late) == [[engine.generated(job, NAMES[at])] for at, job in enumerate(late)]
    wanted = engine.model.generate(
        torch.tensor([first.ids]), prompt_names="long", max_new_tokens=80, do_sample=False, eos_token_id=None
    )[0, 4:]
    assert engine.texts(first) == [engine.tokenizer.decode(wanted, skip_special_tokens=True)]


def test_choices_share_one_reading_of_the_text(engine_of: Make) -> None:
    engine = engine_of(rows=4)
    calls: list[int] = []
    engine.scheduler._watch = lambda what, amount: calls.append(int(amount)) if what == "read_tokens" else None
    job = engine.job([5, 9, 7], "middle", choices=4)
    alone = engine.job([5, 9, 7], "middle")
    (many,), (one,) = engine.ask(job), engine.ask(alone)
    assert many == one * 4
    assert calls == [3, 3]


def test_sampling_with_a_seed_does_not_depend_on_the_company(engine_of: Make) -> None:
    engine = engine_of(rows=6)
    sampling = Sampling(temperature=1.5, top_p=0.9, seed=5)
    alone = engine.job([5, 9, 7], "short", sampling=sampling, choices=2, max_new_tokens=12)
    (first,) = engine.ask(alone)
    again = engine.job([5, 9, 7], "short", sampling=sampling, choices=2, max_new_tokens=12)
    company = [engine.job(text, "long", sampling=Sampling(temperature=2.0)) for text in texts([9, 2, 14, 5], seed=3)]
    assert engine.ask(company[0], again, *company[1:])[1] == first
    others = [
        engine.job(text, "short", sampling=replace(sampling, seed=seed), choices=2, max_new_tokens=12)
        for text, seed in (([5, 9, 7], 6), ([8, 9], 5))
    ]
    found = {text for each in engine.ask(*others) for text in each} | set(first)
    assert len(found) == 6


@pytest.mark.parametrize("alone", [False, True])
def test_end_tokens(alone: bool, engine_of: Make) -> None:
    """An end token ends an answer and is no part of it; told to be ignored, it does not."""
    engine = engine_of("mamba" if alone else "llama")
    bias = Sampling(logit_bias={EOS: 100.0})
    job, on = (engine.job([5, 9], "short", sampling=bias, ignore_eos=ignore) for ignore in (False, True))
    assert engine.ask(job, on) == [[""], [""]]
    last = [engine.pieces(one)[-1] for one in (job, on)]
    assert [(one.finish_reason, one.new_tokens) for one in last] == [("stop", 1), ("length", 8)]


def test_a_cancelled_request_leaves_the_batch_and_says_no_more(engine_of: Make) -> None:
    engine = engine_of(rows=2)
    gone = engine.job([5, 9], "long", max_new_tokens=100, ignore_eos=True)
    stays = engine.job([7, 8, 9], "short", max_new_tokens=30, ignore_eos=True)
    waits = engine.job([9, 9, 9, 4], "middle")
    never = engine.job([9, 9, 9, 4], "middle")
    for job in (gone, stays, waits, never):
        engine.scheduler.submit(job)
    wait_for(lambda: engine.scheduler.running == 2)
    engine.scheduler.cancel(never)
    engine.scheduler.cancel(gone)
    assert engine.texts(waits) == [engine.generated(waits, "middle")]
    engine.texts(stays)
    wait_for(lambda: engine.scheduler.running == 0)
    assert not any(piece.finish_reason for piece in engine.said[gone.number])
    assert engine.said[never.number] == []


def test_only_so_many_wait(engine_of: Make) -> None:
    engine = engine_of(rows=1, waiting=2, start=False)
    engine.scheduler._thread = type("Stopped", (), {"is_alive": lambda self: True})()  # takes requests, answers none
    jobs = [engine.job([5], "short") for _ in range(3)]
    for job in jobs[:2]:
        engine.scheduler.submit(job)
    with pytest.raises(BusyError, match="2 requests are waiting"):
        engine.scheduler.submit(jobs[2])
    engine.scheduler._thread = type("Stopped", (), {"is_alive": lambda self: False})()


def test_memory_for_keys_and_values_is_kept_to(engine_of: Make) -> None:
    engine = engine_of(rows=8, cache_positions=60)
    most: list[int] = []
    engine.scheduler._watch = lambda what, amount: most.append(int(amount)) if what == "step_rows" else None
    jobs = [engine.job(text, "middle", max_new_tokens=9, ignore_eos=True) for text in texts([5] * 6)]
    engine.ask(*jobs)
    assert max(most) == 3  # of 6 + 5 + 9 positions each
    with pytest.raises(ModelError, match=r"1 × 66 positions .* exceed .* 60 positions"):
        engine.scheduler.submit(engine.job(draw(1, 20)[0].tolist(), "middle", max_new_tokens=40))
    with pytest.raises(ModelError, match="9 answers are asked for, and 8"):
        engine.scheduler.submit(engine.job([5], "middle", choices=9))


def test_a_broken_request_fails_alone(engine_of: Make) -> None:
    """A token that the model has not, and a prompt that gives NaN, beside rows that go on as if nothing was."""
    engine = engine_of(rows=4)
    with torch.no_grad():
        engine.prompts["long"].encoder.embedding.weight[2] = float("nan")
    good = [engine.job(text, "short", max_new_tokens=20) for text in texts([4, 6, 9, 3, 5, 7])]
    wanted = [[engine.generated(job, "short")] for job in good]
    foreign, broken = engine.job([5, 4000], "short"), engine.job([5, 6, 7], "long", choices=2)
    for job in (*good[:2], foreign, broken, *good[2:]):
        engine.scheduler.submit(job)
    with pytest.raises(ModelError, match="token 4000"):
        engine.texts(foreign)
    with pytest.raises(ModelError, match="not a number"):
        engine.texts(broken)
    assert [engine.texts(job) for job in good] == wanted
    assert engine.ask(again := engine.job(good[0].ids, "short", max_new_tokens=20)) == wanted[:1], again


def test_a_defect_in_a_step_fails_what_runs_and_nothing_after_it(
    engine_of: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of()
    step = engine.scheduler._batch.step

    def failing(_tokens: Any) -> torch.Tensor:
        monkeypatch.setattr(engine.scheduler._batch, "step", step)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.scheduler._batch, "step", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.ask(engine.job([5, 6], "short"))
    job = engine.job([5, 6], "short")
    assert engine.ask(job) == [[engine.generated(job, "short")]]


def test_stopping_answers_what_runs_and_waits(engine_of: Make) -> None:
    engine = engine_of(rows=1)
    jobs = [engine.job(text, "short", max_new_tokens=20, ignore_eos=True) for text in texts([4, 5, 6])]
    for job in jobs:
        engine.scheduler.submit(job)
    engine.scheduler.drain()
    with pytest.raises(StoppedError):
        engine.scheduler.submit(engine.job([5], "short"))
    assert engine.scheduler.stop(seconds=SECONDS)
    assert all(engine.pieces(job)[-1].finish_reason == "length" for job in jobs)


def test_what_is_not_answered_in_time_is_told_so(engine_of: Make) -> None:
    engine = engine_of(rows=1)
    jobs = [engine.job(text, "short", max_new_tokens=110, ignore_eos=True) for text in texts([4] * 30)]
    for job in jobs:
        engine.scheduler.submit(job)
    assert not engine.scheduler.stop(seconds=0)
    with pytest.raises(StoppedError):
        engine.texts(jobs[-1])


def test_prefixes_of_one_length_are_computed_together(engine_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("gemma3", start=False)
    engine.prompts |= prompts_on(engine.model, engine.tokenizer, dict.fromkeys("abcd", 4))
    runs: list[int] = []
    engine.model.base.register_forward_hook(lambda *_: runs.append(1))
    jobs = [engine.job(text, name, max_new_tokens=1) for name, text in zip("abcd", texts([2, 3, 1, 3]), strict=True)]
    logits = engine.scheduler._batch.join(jobs)
    assert len(runs) == 2  # the prompts, and the texts behind them
    assert engine.model.prefixes.names == [*"abcd"]
    engine.scheduler._batch.clear()
    engine.scheduler._batch.join(jobs)
    assert len(runs) == 3
    for row, (name, job) in enumerate(zip("abcd", jobs, strict=True)):
        engine.model.clear_prefixes()
        wanted = engine.model(torch.tensor([job.ids]), prompt_names=name).logits[0, -1]
        assert relative_error(logits[row], wanted) < 1e-5


def test_a_retired_prompt_answers_who_asked_before_and_is_not_kept(engine_of: Make) -> None:
    engine = engine_of()
    prompt = engine.prompts["middle"]
    prompt.retired = True
    job = engine.job([5, 6], "middle")
    assert engine.ask(job) == [[engine.generated(job, "middle")]]
    engine.model.prefixes.clear()
    engine.ask(engine.job([5, 6], "middle"), engine.job([5, 6], "short"))
    assert engine.model.prefixes.names == ["short"]
