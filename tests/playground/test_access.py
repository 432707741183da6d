"""The playground for whoever cannot see it well, cannot click, or has a small screen."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browsing import answered, expect, slow

pytestmark = pytest.mark.browser
Visits = Callable[..., Any]
SIZES = {"desktop": (1280, 900), "phone": (360, 740)}


@pytest.mark.parametrize(("size", "scheme"), [*itertools.product(SIZES, ("light", "dark"))])
def test_it_fits_and_can_be_read(visit: Visits, pictures: Path, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    seen = visit(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = seen.open()
    page.get_by_role("combobox").nth(1).select_option("beta")
    seen.ask("x" * 60, 30)
    answered(page)
    for card in page.locator("details.card").all():
        if card.get_attribute("open") is None:
            card.locator("summary").first.click()
    page.get_by_text("The losses as a table").first.click()
    expect(page.get_by_role("img")).to_be_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    left, right = (one.bounding_box() for one in page.locator("section.panel").all())
    assert (left["y"] == right["y"]) == (size == "desktop")
    assert low_contrast(page) == []
    page.screenshot(path=pictures / f"playground-{size}-{scheme}.png", full_page=True)
    seen.check()


def low_contrast(page: Any) -> list[str]:
    """Texts that stand out from their ground by less than 4.5 to 1, as WCAG counts it."""
    return list(page.evaluate(CONTRAST))


CONTRAST = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = (color) => {
    const [r, g, b] = numbers(color).map((part) => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (numbers(color)[3] !== 0) return color;
    }
    throw new Error("no ground");
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const says = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    if (!(says || node.matches("input, select, textarea")) || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const [one, other] = [light(node instanceof SVGElement ? style.fill : style.color), light(ground(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) found.push(`${node.tagName} ${node.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


def test_names_headings_and_live_regions(visit: Visits) -> None:
    seen = visit()
    page = seen.open()
    seen.ask(most=5)
    answered(page)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.title() == "ptune playground"
    for control in page.locator("button, input, select, textarea, summary").all():
        expect(control).to_have_accessible_name(re.compile(r"\S"))
    names = [one.get_attribute("aria-label") for one in page.get_by_role("combobox").all()]
    assert names == ["Prompt of answer 1", "Prompt of answer 2"]
    levels = [int(one.evaluate("node => node.tagName")[1]) for one in page.locator("h1, h2, h3, h4").all()]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    identities = [one.get_attribute("id") for one in page.locator("[id]").all()]
    assert len(set(identities)) == len(identities)
    live = page.locator("[aria-live], [role=status], [role=alert], [role=log]")
    assert [one.get_attribute("id") for one in live.all()] == ["status"]
    for role, count in (("banner", 1), ("main", 1), ("contentinfo", 1), ("region", 2)):
        assert page.get_by_role(role).count() == count, role
    seen.check()


def test_the_keyboard_reaches_everything_and_shows_where_it_is(visit: Visits) -> None:
    seen = visit()
    page = seen.open()
    seen.ask(most=5)
    answered(page)
    wanted = page.locator("button, input, select, textarea, summary").count()
    page.evaluate("() => document.activeElement.blur()")
    reached = set()
    for _ in range(wanted + 3):
        page.keyboard.press("Tab")
        at, outline = page.evaluate(
            "() => { const at = document.activeElement; return [[...document.querySelectorAll('body *')].indexOf(at), "
            "getComputedStyle(at).outlineStyle]; }"
        )
        if at >= 0:
            reached.add(at)
            assert outline == "solid"
    assert len(reached) == wanted
    seen.check()


def test_nothing_moves_where_that_is_not_wanted(visit: Visits, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    moving = "node => getComputedStyle(node, '::after').animationName"
    for wish, name in (("reduce", "none"), ("no-preference", "blink")):
        seen = visit(reduced_motion=wish)
        page = seen.open()
        seen.ask(most=100)
        expect(page.locator(".answer").first).to_have_attribute("aria-busy", "true")
        assert page.locator(".answer").first.evaluate(moving) == name
        page.get_by_role("button", name="Stop").click()
        answered(page)
        seen.check()
