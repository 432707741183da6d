"""A visit of the playground in a browser, and what is looked at there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from running_servers import SECONDS, Running


class Visit:
    """A browser's visit of one server: its page, and what went on.

    Args:
        browser: The browser.
        running: The server.
        options: Of the browser's context.
    """

    def __init__(self, browser: Any, running: Running, **options: Any) -> None:
        self.running = running
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.context.set_default_timeout(SECONDS * 1000)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.told: list[str] = []
        """What the console says, errors of scripts, dialogs."""
        self.page.on("request", lambda one: self.requests.append(one.url))
        self.page.on("console", lambda one: self.told.append(f"{one.type}: {one.text}"))
        self.page.on("pageerror", lambda one: self.told.append(f"error: {one}"))
        self.page.on("dialog", lambda one: (self.told.append(f"dialog: {one.message}"), one.dismiss()))

    def open(self) -> Any:
        """The page, once its cards are there."""
        self.page.goto(self.running.url)
        expect(self.page.locator("details.card h3")).to_have_text([re.compile("About")] * 2)
        return self.page

    def ask(self, text: str = "green red", most: int = 12) -> None:
        """Type a text and ask; the answers are there when `status` tells of both."""
        self.page.get_by_label("Text", exact=True).fill(text)
        self.page.get_by_label("Max tokens").fill(str(most))
        self.page.get_by_role("button", name="Ask").click()

    def check(self, *expected: str) -> None:
        """Nothing went elsewhere, and the console told nothing but what is expected."""
        origins = {f"{one.split('/')[0]}//{one.split('/')[2]}" for one in self.requests}
        assert origins == {self.running.url}, origins
        left = [one for one in self.told if not any(said in one for said in expected)]
        assert not left, left


def expect(what: Any) -> Any:
    from playwright.sync_api import expect

    return expect(what)


def answered(page: Any) -> str:
    """The sentence that tells of both answers, once they are there."""
    expect(page.locator("#status")).to_contain_text("Answer 2")
    return str(page.locator("#status").inner_text())


def figures(panel: Any) -> dict[str, str]:
    names = panel.locator("dl.figures dt").all_inner_texts()
    return dict(zip(names, panel.locator("dl.figures dd").all_inner_texts(), strict=True))


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a tenth of a second pass between two pieces of an answer."""
    from ptune.serving.web import routes_of_chat

    quick = routes_of_chat.chunks_of

    async def chunks(*args: Any) -> AsyncIterator[dict[str, Any]]:
        async for chunk in quick(*args):
            await anyio.sleep(0.1)
            yield chunk

    monkeypatch.setattr(routes_of_chat, "chunks_of", chunks)
