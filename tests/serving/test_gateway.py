"""A gateway in front of other servers gives their answers, and loses none while one of them can answer."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import run
from ptune.errors import ModelError
from ptune.saved.opened_folder import open_folder
from running_servers import KEY, SECONDS, Running, save_prompt

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
NAMES = [f"p{number}" for number in range(6)]
TEXTS = ("Where is my order?", "green", " two  blanks", "?")
UPSTREAM_KEY = "what-the-upstreams-want"


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="session")
def exported(prompt_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with the prompts in its vocabulary."""
    from ptune.saved.as_model.export_model import export_model

    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model({name: open_folder(prompt_folders / name) for name in NAMES}, folder)
    return folder


@pytest.fixture(scope="session")
def gateway() -> Iterator[Callable[..., Running]]:
    """Makes a gateway: model, upstreams, prompt folders."""
    from ptune.serving.gateway.open_gateway import gateway_model
    from ptune.serving.gateway.vocabulary_prompts import vocabulary_prompts
    from ptune.serving.prompt_registry import PromptRegistry
    from ptune.serving.serve_settings import ServeSettings
    from ptune.serving.web.server import make_parts

    made: list[Running] = []

    def make(model_dir: Path, *upstreams: Any, folders: Path | None = None, up: int = 1, **values: Any) -> Running:
        urls = tuple(one.url for one in upstreams)
        settings = replace(ServeSettings(port=0, keys=(KEY,), watch_seconds=0, upstreams=urls), **values)
        model, tokenizer = gateway_model(str(model_dir))
        registry = PromptRegistry(model, tokenizer, base_name="tiny")
        for prompt in vocabulary_prompts(model_dir, model, tokenizer) or ():
            registry.put(prompt)
        for folder in sorted(folders.iterdir()) if folders else ():
            registry.add(folder.name, folder)
        made.append(Running.of(make_parts(model, tokenizer, registry, settings)))
        wait_until(lambda: made[-1].parts.engine.upstreams.up >= up)
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Any]]:
    """Makes an upstream that does as it is told."""
    from scripted_upstream import ScriptedUpstream

    made: list[Any] = []

    def make(*script: str, **values: Any) -> Any:
        made.append(ScriptedUpstream(*script, **values).start())
        return made[-1]

    yield make
    for one in made:
        one.kill()


def wait_until(true: Callable[[], bool]) -> None:
    """Come back when it is so."""
    until = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="session")
def two_servers(serve: Callable[..., Running], exported: Path) -> list[Running]:
    """Two servers of the exported model, as vLLM would serve it: they know nothing of prompts."""
    return [serve(model_dir=exported, keys=(UPSTREAM_KEY,)) for _ in range(2)]


@pytest.fixture(scope="session")
def in_front(gateway: Callable[..., Running], exported: Path, two_servers: list[Running]) -> Running:
    """A gateway in front of both."""
    return gateway(exported, *two_servers, up=2, upstream_key=UPSTREAM_KEY)


def both(*servers: Running, ask: Callable[[Any], Any]) -> list[Any]:
    """What each server says, without what is another at every request."""
    found = []
    for one in servers:
        answer = ask(one.client()).model_dump()
        found.append({key: value for key, value in answer.items() if key in ("choices", "model", "object")})
        found[-1]["written"] = answer["usage"]["completion_tokens"]
    return found


@pytest.mark.parametrize("name", [*NAMES, "tiny"])
def test_the_answers_are_those_of_a_server_of_the_prompts(running: Running, in_front: Running, name: str) -> None:
    for text in TEXTS:
        chat, chat_here = (
            both(
                running,
                in_front,
                ask=lambda client, text=text: client.chat.completions.create(
                    model=name, messages=said(text), temperature=0, max_tokens=9
                ),
            )
            if name != "tiny"
            else (None, None)
        )
        assert chat == chat_here
        plain, plain_here = both(
            running,
            in_front,
            ask=lambda client, text=text: client.completions.create(
                model=name, prompt=text, temperature=0, max_tokens=9, stop=["a"], logit_bias={"7": 3}, n=2
            ),
        )
        assert plain == plain_here


def test_log_probabilities_come_through(running: Running, in_front: Running) -> None:
    chat, here = both(
        running,
        in_front,
        ask=lambda client: client.chat.completions.create(
            model="p4", messages=said("green"), temperature=0, max_tokens=6, logprobs=True, top_logprobs=3
        ),
    )
    told, told_here = (one["choices"][0].pop("logprobs")["content"] for one in (chat, here))
    assert chat == here
    assert [one["token"] for one in told] == [one["token"] for one in told_here]
    assert len(told_here) == 6
    for one, other in zip(told, told_here, strict=True):
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)
        assert [top["token"] for top in one["top_logprobs"]] == [top["token"] for top in other["top_logprobs"]]


def test_sampling_with_a_seed_is_repeated(in_front: Running) -> None:
    def texts(seed: int) -> list[str]:
        found = in_front.client().completions.create(
            model="p1", prompt="green", temperature=0.9, top_p=0.9, seed=seed, n=3, max_tokens=8
        )
        return [one.text for one in found.choices]

    assert texts(5) == texts(5) != texts(6)
    assert len(set(texts(5))) > 1


def test_a_stream_is_the_whole_answer(in_front: Running) -> None:
    client = in_front.client()
    asked = {"model": "p3", "messages": said("green"), "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == whole.choices[0].finish_reason


def test_many_at_once_with_every_prompt(running: Running, in_front: Running, two_servers: list[Running]) -> None:
    def ask(server: Running, at: int) -> str:
        answer = server.client().chat.completions.create(
            model=NAMES[at % 6], messages=said(TEXTS[at % 4]), temperature=0, max_tokens=10
        )
        return str(answer.choices[0].message.content)

    before = [_written(one) for one in two_servers]
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda at: ask(in_front, at), range(48)))
    assert found == [ask(running, at) for at in range(48)]
    shares = [_written(one) - told for one, told in zip(two_servers, before, strict=True)]
    assert min(shares) > 0.2 * sum(shares)


def _written(server: Running) -> float:
    text = server.http().get("/metrics", headers={"Authorization": f"Bearer {UPSTREAM_KEY}"}).text
    line = next(one for one in text.splitlines() if one.startswith("ptune_written_tokens_total"))
    return float(line.split()[-1])


def test_prompts_outside_the_vocabulary_are_sent_as_embeddings(
    gateway: Callable[..., Running], scripted: Callable[..., Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ptune import Answerer

    save_prompt(tiny_model_dir, tmp_path / "one", length=5)
    upstream = scripted()
    front = gateway(tiny_model_dir, upstream, folders=tmp_path)
    front.client().chat.completions.create(model="one", messages=said("green"), temperature=0, max_tokens=8)
    (body,) = upstream.bodies
    assert "prompt" not in body
    sent = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    answerer = Answerer.open(tmp_path / "one", dtype="float32", self_check=False)
    with torch.no_grad():
        out = model.generate(inputs_embeds=sent[None], max_new_tokens=8, do_sample=False)
        expected = answerer.answer("green", max_new_tokens=8)
    assert tokenizer.decode(out[0], skip_special_tokens=True) == expected


def test_virtual_tokens_inside_the_text_are_embedded_in_their_places(tiny_tokenizer: Any) -> None:
    from architectures import build
    from ptune.config import PromptTuningConfig
    from ptune.data.template import get_template
    from ptune.loading.embedding_table import embedding_scale
    from ptune.model.wrapper import PTunedModel
    from ptune.serving.engine.requested import Job, Sampling
    from ptune.serving.gateway.upstream_text import UpstreamText
    from ptune.serving.served_prompt import ServedPrompt

    for name in ("llama", "gemma3"):  # Gemma's embeddings are scaled
        model = PTunedModel(build(name), PromptTuningConfig(num_virtual_tokens=5, tokens_in_text=3), self_check=False)
        encoder, config = model.prompts["default"], model.prompt_configs["default"]
        template = get_template("{prompt:2}{instruction}{prompt:3} It was {output}", tiny_tokenizer)
        prompt = ServedPrompt("one", "one", Path(), encoder, config, template)
        layer: Any = model.base.get_input_embeddings()
        scale = embedding_scale(layer)
        text = UpstreamText(layer, 0.0 if scale is None else scale)
        job = Job(
            ids=[7, -3, -4, -5, 9], prompt=prompt, sampling=Sampling(), max_new_tokens=1, emit=lambda _event: None
        )
        sent = torch.load(io.BytesIO(base64.b64decode(text.of(job)["prompt_embeds"])), weights_only=True)
        vectors, words = encoder.baked(), layer(torch.tensor([7, 9])).detach()
        assert torch.equal(sent, torch.cat([vectors[:2], words[:1], vectors[2:], words[1:]]))
        penalized = replace(job, sampling=Sampling(repetition_penalty=1.2))
        with pytest.raises(ModelError, match="repetition_penalty looks at the tokens"):
            text.of(penalized)


def test_what_an_upstream_is_sent(
    gateway: Callable[..., Running], scripted: Callable[..., Any], exported: Path
) -> None:
    upstream = scripted(words=3)
    front = gateway(exported, upstream, upstream_key="abc", upstream_model="another")
    front.client().completions.create(
        model="p2", prompt=[5, 6], max_tokens=3, seed=4, stop=["q"], logprobs=2, presence_penalty=0.5, n=2
    )
    noted = json.loads((exported / "soft_prompts.json").read_text())["prompts"]["p2"]
    first = noted["first_id"]
    assert upstream.bodies == [
        {
            "prompt": [*range(first, first + noted["virtual_tokens"]), 5, 6],
            "model": "another",
            "max_tokens": 3,
            "n": 2,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.0,
            "ignore_eos": False,
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": 4,
            "stop": ["q"],
            "logprobs": 2,
        }
    ]
    assert upstream.keys == {"Bearer abc"}


WHOLE = "w0 w1 w2 w3 w4 w5 "


@pytest.mark.parametrize("fault", ["cut", "abort", "noise", "500", "401", "404", "429"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_one_upstream_fails_at_another_does(
    gateway: Callable[..., Running], scripted: Callable[..., Any], exported: Path, fault: str, stream: bool
) -> None:
    upstream = scripted(fault, "answer")
    front = gateway(exported, upstream)
    asked = {"model": "p0", "prompt": "a", "temperature": 0, "max_tokens": 6, "n": 2, "logprobs": 1, "stream": stream}
    answer = front.client().completions.create(**asked)
    if stream:
        choices = [one.choices[0] for one in answer]
        texts = ["".join(one.text for one in choices if one.index == at) for at in range(2)]
        words = [
            [word for one in choices if one.index == at and one.logprobs for word in one.logprobs.tokens]
            for at in (0, 1)
        ]
    else:
        texts = [one.text for one in answer.choices]
        words = [one.logprobs.tokens for one in answer.choices]
        assert answer.usage.completion_tokens == 12
        assert answer.choices[0].logprobs.top_logprobs[0] == {"w0 ": -0.5}
    assert texts == [WHOLE, WHOLE]
    assert words == [[f"w{number} " for number in range(6)]] * 2
    assert len(upstream.bodies) == 2


def test_sampling_is_begun_again_only_where_nobody_has_seen_it(
    gateway: Callable[..., Running], scripted: Callable[..., Any], exported: Path
) -> None:
    asked = {"model": "p0", "prompt": "a", "max_tokens": 6}
    front = gateway(exported, scripted("cut", "answer"))
    assert front.client().completions.create(**asked).choices[0].text == WHOLE

    def streamed(*script: str, **more: Any) -> list[str]:
        front = gateway(exported, scripted(*script))
        with front.http().stream("POST", "/v1/completions", json={**asked, **more, "stream": True}) as response:
            return [line.removeprefix("data: ") for line in response.iter_lines() if line]

    lost = streamed("cut", "answer")
    assert [json.loads(one)["choices"][0]["text"] for one in lost[:-1]] == ["w0 ", "w1 "]
    assert json.loads(lost[-1])["error"]["code"] == "upstream_unavailable"
    assert "another would write another one" in lost[-1]
    assert streamed("cut", "answer", seed=1)[-1] == "[DONE]"
    assert "writes other words" in streamed("cut", "other", seed=1)[-1]


@pytest.mark.parametrize(
    ("status", "told", "message"),
    [("400", 400, "the upstream cannot use the request: scripted 400"), ("500", 503, "status 500: scripted 500")],
)
def test_what_no_upstream_can_do_is_told(
    gateway: Callable[..., Running], scripted: Callable[..., Any], exported: Path, status: str, told: int, message: str
) -> None:
    upstream = scripted(status)
    answer = gateway(exported, upstream).http().post("/v1/completions", json={"model": "p0", "prompt": "a"})
    assert answer.status_code == told
    assert message in answer.json()["error"]["message"]
    assert len(upstream.bodies) == (1 if told == 400 else 3)


def test_none_is_lost_while_one_upstream_dies(
    gateway: Callable[..., Running], scripted: Callable[..., Any], exported: Path
) -> None:
    staying, dying = scripted(), scripted()
    staying.delay = dying.delay = 0.02
    front = gateway(exported, staying, dying, up=2)

    def ask(_: int) -> str:
        return front.client().completions.create(model="p0", prompt="a", max_tokens=6).choices[0].text

    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, at) for at in range(64)]
        wait_until(lambda: len(dying.bodies) >= 8)
        dying.kill()
        assert {one.result(SECONDS) for one in asked} == {WHOLE}
    assert front.parts.engine.upstreams.up == 1
    many = len(dying.bodies)
    assert {ask(at) for at in range(4)} == {WHOLE}
    assert len(dying.bodies) == many
    dying.start()
    wait_until(lambda: front.parts.engine.upstreams.up == 2)
    text = front.http().get("/metrics").text
    assert f'ptune_upstream_up{{url="{dying.url}"}} 1.0' in text


def test_without_an_upstream_it_says_so_and_waits_for_one(
    gateway: Callable[..., Running], scripted: Callable[..., Any], exported: Path
) -> None:
    upstream = scripted()
    upstream.healthy = False
    front = gateway(exported, upstream, up=0)
    http = front.http()
    assert http.get("/health").status_code == 503
    answer = http.post("/v1/completions", json={"model": "p0", "prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstream_unavailable")
    assert answer.headers["retry-after"]
    upstream.healthy = True
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http.post, "/v1/completions", json={"model": "p0", "prompt": "a"})
        assert waiting.result(SECONDS).status_code == 200
    assert http.get("/health").status_code == 200


def test_an_upstream_of_another_model_is_not_asked(
    gateway: Callable[..., Running], scripted: Callable[..., Any], exported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong, unknown_name = scripted(tokens=[1, 2, 3]), scripted()
    front = gateway(exported, wrong, up=0)
    wait_until(lambda: front.parts.engine.upstreams.all[0].state == "wrong")
    assert (
        "its tokenizer cuts a text in another way"
        in [one.reason for one in caplog.records if hasattr(one, "reason")][-1]
    )
    front = gateway(exported, unknown_name, up=0, upstream_model="mine")
    wait_until(lambda: front.parts.engine.upstreams.all[0].state == "wrong")
    assert front.http().post("/v1/completions", json={"model": "p0", "prompt": "a"}).status_code == 503
    assert not wrong.bodies + unknown_name.bodies


def test_a_client_that_leaves_ends_the_answer_at_the_upstream(
    gateway: Callable[..., Running], scripted: Callable[..., Any], exported: Path
) -> None:
    upstream = scripted("hang")
    front = gateway(exported, upstream)
    asked = {"model": "p0", "prompt": "a", "stream": True}
    with front.http().stream("POST", "/v1/completions", json=asked) as response:
        assert "w0" in next(response.iter_lines())
    wait_until(lambda: upstream.gone == 1)
    wait_until(lambda: front.parts.engine.running == 0)


def test_what_runs_is_answered_before_it_stops(
    gateway: Callable[..., Running], scripted: Callable[..., Any], exported: Path
) -> None:
    upstream = scripted()
    upstream.delay = 0.1
    front = gateway(exported, upstream)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(front.client().completions.create, model="p0", prompt="a", max_tokens=6)
        wait_until(lambda: bool(upstream.bodies))
        front.server.stop()
        assert asked.result(SECONDS).choices[0].text == WHOLE
    front.thread.join(SECONDS)
    assert front.parts.engine.stop(seconds=SECONDS)


def test_prompts_beside_those_of_the_vocabulary(exported: Path, prompt_folders: Path) -> None:
    upstream = ["--upstream", "http://127.0.0.1:1", "--port", 0]
    ran = run("serve", "--model", exported, "--prompts", prompt_folders / "p0", *upstream)
    assert ran.code == 2
    assert "has its prompts in its vocabulary" in ran.err


@pytest.mark.parametrize(
    "change",
    [
        lambda noted: noted.update(first_id=10**9),
        lambda noted: noted.update(virtual_tokens=0),
        lambda noted: noted.update(virtual_tokens="many"),
        lambda noted: noted.update(template="{prompt:3}{instruction}{output}"),
        lambda noted: noted.pop("first_id"),
    ],
)
def test_a_damaged_list_of_prompts(exported: Path, tmp_path: Path, change: Callable[[Any], None]) -> None:
    from ptune.serving.gateway.open_gateway import gateway_model
    from ptune.serving.gateway.vocabulary_prompts import vocabulary_prompts

    listed = json.loads((exported / "soft_prompts.json").read_text())
    change(listed["prompts"]["p2"])
    (tmp_path / "soft_prompts.json").write_text(json.dumps(listed))
    with pytest.raises(ModelError, match=r"soft_prompts\.json is no list of prompts: "):
        vocabulary_prompts(tmp_path, *gateway_model(str(exported)))


def test_the_playground_knows_the_prompts_of_the_vocabulary(in_front: Running) -> None:
    http = in_front.http()
    card = http.get("/v1/prompts/p3").json()
    assert (card["virtual_tokens"], card["template"], card["written_by"]) == (6, "tutorial", "ptune export")
    assert card["loss_curve"]["note"] == "An exported model keeps no loss histories."
    assert "ptune playground" in http.get("/").text
