"""The playground in a browser: what it asks, and what it shows of the answers."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browsing import answered, expect, figures, slow
from running_servers import KEY, Running

pytestmark = pytest.mark.browser
Visits = Callable[..., Any]
HTML = "<script>alert(1)</script><img src=/nowhere onerror=alert(2)>\n  &amp; \u202e\u4f60"


def test_both_answers_are_those_of_the_api(visit: Visits, running: Running) -> None:
    seen = visit()
    page = seen.open()
    panels = page.locator("section.panel")
    assert [one.input_value() for one in page.get_by_role("combobox").all()] == ["alpha", "tiny"]
    text = "green red\n  blue?"
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_label("Max tokens").fill("12")
    page.keyboard.press("Tab")
    page.get_by_label("Text", exact=True).press("Control+Enter")
    said = answered(page)
    client = running.client()
    for at, name in enumerate(("alpha", "tiny")):
        wanted = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=12
        )
        assert panels.nth(at).locator(".answer").text_content() == wanted.choices[0].message.content
        told = figures(panels.nth(at))
        assert told["Tokens"] == str(wanted.usage.completion_tokens)
        assert told["Finish reason"] == wanted.choices[0].finish_reason
        first, total = (float(told[one].removesuffix(" s")) for one in ("First token", "Total"))
        assert 0 <= first <= total < 60
        assert float(told["Tokens/s"]) > 0
        assert f"Answer {at + 1}, {name}: {told['Tokens']} tokens in" in said
    assert sum(one.endswith("/v1/chat/completions") for one in seen.requests) == 2
    seen.check()


def test_settings_are_asked_for(visit: Visits, running: Running) -> None:
    seen = visit()
    page = seen.open()
    bodies: list[Any] = []
    page.on("request", lambda one: bodies.append(one.post_data_json) if one.method == "POST" else None)
    page.get_by_role("combobox").nth(1).select_option("beta")
    page.get_by_label("Temperature").fill("1.25")
    page.get_by_label("Seed").fill("7")
    seen.ask("green", 9)
    answered(page)
    common = {
        "temperature": 1.25,
        "max_tokens": 9,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    messages = [{"role": "user", "content": "green"}]
    assert bodies == [{**common, "model": name, "messages": messages} for name in ("alpha", "beta")]
    page.get_by_label("Temperature").fill("-1")
    page.get_by_role("button", name="Ask").click()
    assert page.evaluate("() => document.activeElement.id") == "temperature"
    assert len(bodies) == 2
    seen.check()


def test_answers_stream_side_by_side_and_stop(visit: Visits, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    seen = visit()
    page = seen.open()
    seen.ask(most=100)
    answers = page.locator(".answer")
    for at in (0, 1):
        expect(answers.nth(at)).to_have_attribute("aria-busy", "true")
        expect(answers.nth(at)).to_have_text(re.compile(r".{4,}", re.DOTALL))
    assert page.locator("#status").inner_text() == "Asking …"
    page.get_by_label("Text", exact=True).press("Control+Enter")  # asks nothing more meanwhile
    page.get_by_role("button", name="Stop").click()
    assert "stopped" in answered(page)
    for at in (0, 1):
        assert figures(page.locator("section.panel").nth(at))["Finish reason"] == "stopped"
        expect(answers.nth(at)).to_have_attribute("aria-busy", "false")
    texts = answers.all_inner_texts()
    time.sleep(0.5)
    assert answers.all_inner_texts() == texts
    until = time.monotonic() + 20
    while running.parts.engine.running:  # the server has stopped too
        assert time.monotonic() < until
        time.sleep(0.05)
    assert sum(one.endswith("/v1/chat/completions") for one in seen.requests) == 2
    monkeypatch.undo()
    seen.ask(most=5)
    expect(page.locator("#status")).to_contain_text("length")
    seen.check()


def test_a_prompt_that_has_gone_meanwhile(
    visit: Visits, serve: Callable[..., Running], prompt_folders: Path, tmp_path: Path
) -> None:
    for name in ("alpha", "beta"):
        shutil.copytree(prompt_folders / name, tmp_path / name)
    running = serve(tmp_path)
    seen = visit(running)
    page = seen.open()
    running.parts.prompts.remove("alpha")
    seen.ask()
    said = answered(page)
    panel = page.locator("section.panel").first
    expect(panel.locator(".error")).to_have_text("unknown model 'alpha'. Known: beta, tiny.")
    assert figures(panel)["Finish reason"] == "error"
    assert "Answer 1, alpha: unknown model 'alpha'" in said
    assert page.locator("section.panel").nth(1).locator(".error").is_hidden()
    page.get_by_role("button", name="Read the list").click()
    expect(page.get_by_role("combobox").first).to_have_value("beta")
    expect(page.locator("details.card h3").first).to_have_text("About beta")
    running.server.stop(force=True)
    running.thread.join(30)
    page.get_by_role("button", name="Ask").click()
    expect(panel.locator(".error")).to_have_text("The server cannot be reached.")
    seen.check("404", "ERR_CONNECTION_REFUSED")


def events(*values: Any) -> str:
    return "".join(f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n" for one in values)


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def stand_in(page: Any, body: str) -> None:
    """Let a stream of this text answer whatever is asked."""
    answer = {"body": body, "content_type": "text/event-stream"}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))


def test_what_a_model_or_a_folder_says_is_text(visit: Visits) -> None:
    seen = visit()
    page = seen.open()
    page.get_by_role("combobox").first.select_option("beta")
    expect(page.locator("details.card").first).to_contain_text("<img src=/nowhere onerror=alert(1)>")
    halves = [piece(HTML[:9]), piece(HTML[9:], "stop"), {"choices": [], "usage": {"completion_tokens": 3}}]
    stand_in(page, events(*halves, "[DONE]"))
    seen.ask()
    answered(page)
    for at in (0, 1):
        assert page.locator(".answer").nth(at).text_content() == HTML
    stand_in(page, events(piece("so far"), {"error": {"message": HTML}}))
    seen.ask()
    expect(page.locator(".error").first).to_be_visible()
    assert page.locator(".error").first.text_content() == HTML
    assert page.locator(".answer").first.text_content() == "so far"
    assert page.locator("img, main script, iframe").count() == 0
    assert not [one for one in seen.requests if "nowhere" in one]
    seen.check()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (events(piece("so far")), "The connection ended before the answer was complete."),
        (events(piece("so far"), "{"), "The answer came in a form that cannot be read."),
        (events(piece("", "stop"), "[DONE]"), "The answer is empty."),
    ],
    ids=["cut", "no JSON", "empty"],
)
def test_streams_that_end_otherwise(visit: Visits, body: str, said: str) -> None:
    seen = visit()
    page = seen.open()
    stand_in(page, body)
    seen.ask()
    answered(page)
    expect(page.locator(".error").first).to_have_text(said)
    seen.check()


def test_a_card_and_its_loss_curve(visit: Visits) -> None:
    seen = visit()
    page = seen.open()
    card = page.locator("details.card").first
    facts = dict(zip(card.locator("dt").all_inner_texts(), card.locator("dd").all_inner_texts(), strict=True))
    assert facts["Base model"] == "tiny"
    assert facts["Virtual tokens"] == "5 of 32 numbers each"
    assert facts["Training rows"] == "10 of 12 read"
    assert facts["Held-out loss"] == "3.250 frozen model alone, 0.125 with the prompt"
    curve = card.get_by_role("img")
    expect(curve).to_have_accessible_name(re.compile(r"Training loss: 2\.000 at step 1, 0\.050 at step 40\."))
    assert len(str(curve.locator("polyline").get_attribute("points")).split()) == 14
    assert curve.locator("circle.held-out").count() == 14
    card.get_by_text("The losses as a table").click()
    rows = card.locator("tbody tr")
    assert rows.count() == 14
    assert rows.first.locator("th, td").all_inner_texts() == ["1", "2.0000", "2.5000"]
    expect(page.locator("details.card").nth(1)).to_contain_text("tiny alone, without virtual tokens")
    page.get_by_role("combobox").nth(1).select_option("beta")
    expect(page.locator("details.card").nth(1)).to_contain_text("No loss history is saved with this prompt.")
    seen.check()


def test_a_server_without_prompts_or_chat_template(
    visit: Visits, serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve(None)
    monkeypatch.setattr(running.parts.tokenizer, "chat_template", None)
    seen = visit(running)
    page = seen.open()
    expect(page.locator("#notice")).to_contain_text("No prompt is served yet")
    assert [one.input_value() for one in page.get_by_role("combobox").all()] == ["tiny", "tiny"]
    expect(page.locator("details.card").first).to_contain_text("goes on with the text as it is")
    seen.ask(most=6)
    answered(page)
    wanted = running.client().completions.create(model="tiny", prompt="green red", temperature=0, max_tokens=6)
    assert page.locator(".answer").first.text_content() == wanted.choices[0].text
    seen.check()


def test_a_list_of_prompts_that_does_not_come(visit: Visits, running: Running) -> None:
    seen = visit()
    page = seen.page
    page.route("**/v1/models", lambda route: route.fulfill(status=502, body="<h1>proxy</h1>"))
    page.goto(running.url)
    expect(page.locator("#notice")).to_have_text("The prompts cannot be listed. The server answered with status 502.")
    seen.ask()
    page.unroute("**/v1/models")
    page.get_by_role("button", name="Read the list").click()
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator("details.card h3").first).to_have_text("About alpha")
    seen.check("502")


def test_with_a_key(visit: Visits, serve: Callable[..., Running]) -> None:
    running = serve(keys=(KEY,))
    seen = visit(running, http_credentials={"username": "anybody", "password": KEY})
    page = seen.open()
    seen.ask()
    assert answered(page).count("length") + answered(page).count("stop") == 2
    stored = page.evaluate("() => JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert stored == '[{},{},""]'
    seen.check()
    without = visit(running)
    with pytest.raises(Exception, match="ERR_INVALID_AUTH_CREDENTIALS"):  # a headless browser has nobody to ask
        without.page.goto(running.url)


def test_another_sites_page_asks_for_nothing_with_the_browsers_key(
    visit: Visits, serve: Callable[..., Running], running: Running
) -> None:
    locked = serve(keys=(KEY,))
    seen = visit(locked, http_credentials={"username": "anybody", "password": KEY}, bypass_csp=True)
    seen.open()
    elsewhere = seen.context.new_page()
    elsewhere.goto(running.url)
    body = json.dumps({"model": "alpha", "messages": [{"role": "user", "content": "green"}]})
    for said in (f"{body!r}", f"new Blob([{body!r}])", f"new Blob([{body!r}], {{type: 'text/plain'}})"):
        options = f"{{method: 'POST', mode: 'no-cors', credentials: 'include', body: {said}}}"
        elsewhere.evaluate(f"() => fetch('{locked.url}/v1/chat/completions', {options})")
    with locked.http() as http:
        counted = re.findall(
            r'requests_total\{path="/v1/chat/completions",status="(\d+)"\} (\d)', http.get("/metrics").text
        )
    assert counted == [("403", "3")]  # the key came along, and did not help
