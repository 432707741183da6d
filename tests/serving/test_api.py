"""The official client, unchanged, against a running server; what it gets is what `ptune generate` says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import run
from ptune.answering import Answerer
from running_servers import Running, save_prompt

openai = pytest.importorskip("openai")
NAMES = [f"p{number}" for number in range(6)]
TEXTS = ("Where is my order?", "green", "The lamp is broken", "a b c d e f g", "?")


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def generate(prompt_folders: Path) -> Callable[..., str]:
    """The answer of `ptune generate`, by the object behind it."""
    opened = {name: Answerer.open(prompt_folders / name, dtype="float32", self_check=False) for name in NAMES}

    def answer(name: str, text: str, **options: Any) -> str:
        with torch.no_grad():
            return opened[name].answer(text, **options)

    return answer


def test_models(running: Running) -> None:
    client = running.client()
    assert [one.id for one in client.models.list()] == ["tiny", *NAMES]
    assert client.models.retrieve("p3").root == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match=r"unknown model 'p9'\. Did you mean"):
        client.models.retrieve("p9")


def test_chat_is_what_the_command_generates(running: Running, prompt_folders: Path) -> None:
    answer = running.client().chat.completions.create(
        model="p2", messages=said("green red"), temperature=0, max_tokens=9
    )
    ran = run("generate", prompt_folders / "p2", "green red", "--max-new-tokens", 9)
    assert answer.choices[0].message.content + "\n" == ran.out
    assert (answer.object, answer.model, answer.choices[0].message.role) == ("chat.completion", "p2", "assistant")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == 9
    assert answer.choices[0].finish_reason == "length"


def test_sixty_four_clients_at_once(running: Running, generate: Callable[..., str]) -> None:
    """Prompts, texts and lengths mixed, some streamed; every answer is that of `generate`."""
    asked = [(NAMES[at % 6], TEXTS[at % 5] * (1 + at % 3), 4 + at % 17, at % 4 == 0) for at in range(96)]
    client = running.client()
    gate = threading.Barrier(64)

    def ask(name: str, text: str, most: int, stream: bool, wait: bool) -> str:
        if wait:
            gate.wait(30)
        options = {"model": name, "messages": said(text), "temperature": 0, "max_completion_tokens": most}
        if not stream:
            return str(client.chat.completions.create(**options).choices[0].message.content)
        chunks = client.chat.completions.create(**options, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda one: ask(*one[1], wait=one[0] < 64), enumerate(asked)))
    wanted = [generate(name, text, max_new_tokens=most) for name, text, most, _ in asked]
    assert found == wanted
    assert len(set(found)) > 20


def test_a_conversation_goes_through_the_template(running: Running, generate: Callable[..., str]) -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "green"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [{"type": "text", "text": "bl"}, {"type": "text", "text": "ue"}]},
    ]
    answer = running.client().chat.completions.create(model="p1", messages=messages, temperature=0, max_tokens=7)
    history = (("user", "green"), ("assistant", "red"))
    assert answer.choices[0].message.content == generate(
        "p1", "blue", history=history, system="Be short.", max_new_tokens=7
    )


def test_streams(running: Running, generate: Callable[..., str]) -> None:
    client = running.client()
    chunks = list(
        client.chat.completions.create(
            model="p4", messages=said("green"), temperature=0, max_tokens=6, n=2, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    wanted = generate("p4", "green", max_new_tokens=6)
    for at in range(2):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == at]
        assert own[0].delta.role == "assistant"
        assert "".join(one.delta.content or "" for one in own) == wanted
        assert [one.finish_reason for one in own if one.finish_reason] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1
    pieces = list(client.completions.create(model="p4", prompt="green", temperature=0, max_tokens=6, stream=True))
    whole = client.completions.create(model="p4", prompt="green", temperature=0, max_tokens=6)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert pieces[-1].choices[0].finish_reason == "length"


def test_completions_take_texts_and_token_ids_as_they_are(running: Running) -> None:
    client, tokenizer = running.client(), running.parts.tokenizer
    texts = ["green red", "blue"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    options = {"model": "p5", "temperature": 0, "max_tokens": 8}
    both = client.completions.create(prompt=texts, **options)
    assert [one.index for one in both.choices] == [0, 1]
    assert client.completions.create(prompt=ids, **options).choices == both.choices
    assert client.completions.create(prompt=ids[1], **options).choices[0].text == both.choices[1].text
    assert both.usage.prompt_tokens == sum(map(len, ids))
    model, prompt = running.parts.model, running.parts.prompts.prompts["p5"]
    vectors = prompt.encoder()
    embeds = torch.cat([vectors, model.base.get_input_embeddings()(torch.tensor(ids[0]))])[None]
    out = model.base.generate(inputs_embeds=embeds, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert both.choices[0].text == tokenizer.decode(out[0], skip_special_tokens=True)
    bare = client.completions.create(prompt=texts[0], **{**options, "model": "tiny"})
    assert bare.choices[0].text != both.choices[0].text


def test_log_probabilities_are_those_of_the_model(running: Running) -> None:
    client, model, tokenizer = running.client(), running.parts.model, running.parts.tokenizer
    ids = tokenizer("green red")["input_ids"]
    options = {"model": "p1", "prompt": ids, "temperature": 0.7, "seed": 4, "max_tokens": 6}
    options["logit_bias"] = {str(special): -100 for special in range(4)}  # six tokens that all have a text
    told = client.completions.create(logprobs=3, **options).choices[0]
    pieces = list(client.completions.create(logprobs=3, stream=True, **options))
    streamed = [one.choices[0].logprobs for one in pieces if one.choices[0].logprobs]
    assert [token for one in streamed for token in one.tokens] == told.logprobs.tokens
    assert [at for one in streamed for at in one.text_offset] == told.logprobs.text_offset
    assert "".join(told.logprobs.tokens) == told.text
    new = tokenizer.convert_tokens_to_ids([tokenizer.tokenize(one)[0] for one in told.logprobs.tokens])
    vectors = running.parts.prompts.prompts["p1"].encoder()
    embeds = torch.cat([vectors, model.base.get_input_embeddings()(torch.tensor(ids + new))])[None]
    with torch.no_grad():
        logits = model.base(inputs_embeds=embeds).logits[0, len(vectors) + len(ids) - 1 : -1]
    logs = logits.log_softmax(-1)
    wanted = logs.gather(1, torch.tensor(new)[:, None])[:, 0].tolist()
    assert told.logprobs.token_logprobs == pytest.approx(wanted, abs=1e-4)
    best = logs[0].topk(3)
    assert list(told.logprobs.top_logprobs[0].values()) == pytest.approx(best.values.tolist(), abs=1e-4)
    chat = client.chat.completions.create(
        model="p1", messages=said("green"), temperature=0, max_tokens=5, logprobs=True, top_logprobs=2
    ).choices[0]
    assert "".join(one.token for one in chat.logprobs.content) == chat.message.content
    for one in chat.logprobs.content:
        assert one.logprob == pytest.approx(one.top_logprobs[0].logprob)
        assert bytes(one.bytes).decode() == one.token
    bare = client.chat.completions.create(model="p1", messages=said("green"), max_tokens=2, logprobs=True).choices[0]
    assert all(one.top_logprobs == [] for one in bare.logprobs.content)


def test_stop_seed_and_choices(running: Running) -> None:
    client = running.client()
    options = {"model": "p0", "messages": said("Where is my order?"), "max_tokens": 20}
    whole = client.chat.completions.create(temperature=0, **options).choices[0].message.content
    stop = whole[4:7]
    cut = client.chat.completions.create(temperature=0, stop=[stop, "never"], **options).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(stop)], "stop")
    sampled = [
        [
            one.message.content
            for one in client.chat.completions.create(temperature=1.5, seed=seed, n=3, **options).choices
        ]
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1]
    assert len({*sampled[0], *sampled[2]}) == 6


def test_extensions_of_other_servers(running: Running) -> None:
    client = running.client()
    options = {"model": "p0", "messages": said("green"), "max_tokens": 12, "temperature": 1.2, "seed": 1}
    greedy = client.chat.completions.create(**{**options, "temperature": 0}).choices[0].message.content
    assert client.chat.completions.create(**options, extra_body={"top_k": 1}).choices[0].message.content == greedy
    penalised = client.chat.completions.create(
        **{**options, "temperature": 0}, extra_body={"repetition_penalty": 5.0, "ignore_eos": True}
    )
    assert penalised.choices[0].message.content != greedy
    assert penalised.usage.completion_tokens == 12


@pytest.mark.parametrize(
    ("values", "status", "param", "words"),
    [
        ({"model": "p77"}, 404, "model", "unknown model 'p77'"),
        ({"model": "../p1"}, 404, "model", "unknown model '../p1'"),
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, 400, "temperature", "valid number"),
        ({"n": 0}, 400, "n", "greater than or equal to 1"),
        ({"n": 100}, 400, None, "100 answers are asked for, and 32"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "messages", "last message is not the user's"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None, "messages.0.content"),
        ({"messages": said("x" * 4000)}, 400, "messages", "context is 128 tokens. 4 virtual tokens and 4012 tokens"),
        ({"max_tokens": 500}, 400, "max_tokens", "and 500 are asked for"),
        ({"max_tokens": 5000}, 400, "max_tokens", "this server writes 4096 at most"),
        ({"stop": ["a"] * 40}, 400, None, "stop"),
        ({"logit_bias": {"999": 1}}, 400, "logit_bias", "no token 999"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools", "at most 0"),
        ({"top_logprobs": 2}, 400, None, "top_logprobs needs logprobs"),
        ({"extra_body": {"best": 1}}, 400, "best", "does not know the parameter"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_errors(running: Running, values: dict[str, Any], status: int, param: str | None, words: str) -> None:
    options = {"model": "p1", "messages": said("green"), "max_tokens": 4, **values}
    with pytest.raises(openai.APIStatusError) as caught:
        running.client().chat.completions.create(**options)
    error = caught.value
    assert (error.status_code, error.body["type"]) == (status, "invalid_request_error")
    assert words in error.body["message"]
    assert param is None or error.body["param"] == param


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": ""}, "text is empty"),
        ({"prompt": []}, "at least 1"),
        ({"prompt": [5, 900]}, "no token 900"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 3}, "best_of differs from n"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
    ],
)
def test_errors_of_completions(running: Running, values: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        running.client().completions.create(model="p1", max_tokens=2, **values)
    assert words in caught.value.body["message"]


def test_virtual_tokens_inside_the_template(
    serve: Callable[..., Running], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Such a prompt chats as it generates, beside others; a plain text has no place for it."""
    data = tmp_path / "rows.json"
    data.write_text(json.dumps([{"instruction": f"{word} red", "output": word} for word in ("green", "blue")]))
    words = ("train", "--model", tiny_model_dir, "--data", data, "--output", tmp_path / "all" / "blocks")
    template = "{prompt:3}Ask: {instruction} {prompt:2}Answer: {output}"
    assert run(*words, "--template", template, "--max-steps", 1, "--encoder", "embedding").code == 0
    save_prompt(tiny_model_dir, tmp_path / "all" / "plain")
    client = serve(tmp_path / "all").client()
    with ThreadPoolExecutor(4) as pool:
        ask = {"messages": said("green red"), "temperature": 0, "max_tokens": 9}
        found = list(pool.map(lambda name: client.chat.completions.create(model=name, **ask), ["blocks", "plain"] * 2))
    for name, answer in zip(["blocks", "plain"] * 2, found, strict=True):
        ran = run("generate", tmp_path / "all" / name, "green red", "--max-new-tokens", 9, "--dtype", "float32")
        assert answer.choices[0].message.content + "\n" == ran.out
    with pytest.raises(openai.BadRequestError, match="inside its template"):
        client.completions.create(model="blocks", prompt="green")
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="tiny", messages=said("green"))
