"""The playground's files, who may have them, and what a prompt's card tells. `tests/playground` looks at the page."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from running_servers import KEY, Running

httpx = pytest.importorskip("httpx")
Serve = Callable[..., Running]
FOLDER = files("ptune.serving.web") / "playground"
PATHS = {"/": "index.html"} | {
    f"/playground/{name}": name
    for name in ("page.css", "page.js", "panel.js", "ask.js", "card.js", "loss_curve.js", "icon.svg")
}
ASKED = {"model": "p1", "messages": [{"role": "user", "content": "green"}], "max_tokens": 2}


def basic(key: str, user: str = "me") -> str:
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()


def test_every_file_is_served_as_it_is(running: Running) -> None:
    assert {one.name for one in FOLDER.iterdir()} == set(PATHS.values())
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    with running.http() as http:
        for path, name in PATHS.items():
            found = http.get(path)
            assert (found.status_code, found.content) == (200, (FOLDER / name).read_bytes()), path
            assert found.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
            assert found.headers["x-content-type-options"] == "nosniff"
            assert found.headers["referrer-policy"] == "no-referrer"
            assert found.headers["cache-control"] == "private, no-cache"
            policy = found.headers["content-security-policy"].split("; ")
            assert {"default-src 'self'", "frame-ancestors 'none'", "form-action 'none'"} < set(policy)
            assert "unsafe" not in found.headers["content-security-policy"]
            again = http.get(path, headers={"If-None-Match": f'"x", W/{found.headers["etag"]}'})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", found.headers["etag"])
            head = http.head(path)
            assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", found.headers["etag"])
        assert not set(PATHS) & set(http.get("/openapi.json").json()["paths"])


def test_the_page_refers_to_nothing_elsewhere_and_holds_no_code(running: Running) -> None:
    page = (FOLDER / "index.html").read_text()
    assert 'lang="en"' in page
    assert {f"/{one}" for one in re.findall(r'(?:src|href)="([^"]*)"', page)} <= set(PATHS)
    assert not re.findall(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src)", page)
    for name in PATHS.values():
        text = (FOLDER / name).read_text()
        assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|@import|url\(", text), (
            name
        )
        assert text.count("\n") < 400


@pytest.mark.parametrize(
    "path",
    [
        "/playground",
        "/playground/",
        "/playground/__init__.py",
        "/playground/../keys.py",
        "/playground/..%2f..%2f..%2fetc%2fpasswd",
        "/playground/%2e%2e/keys.py",
        "/playground/page.css/../../app.py",
        "//etc/passwd",
        "/index.html",
    ],
)
def test_no_other_file_is_reached(running: Running, path: str) -> None:
    with running.http() as http:
        found = http.get(path)
    assert (found.status_code, set(found.json())) == (404, {"error"})


def test_without_a_key_the_page_asks_for_one_and_gives_nothing(running: Running) -> None:
    for path in PATHS:
        for key in (
            None,
            basic(f"{KEY}x"),
            basic(""),
            basic("x", KEY),
            "Basic",
            "Basic !!",
            f"Basic {KEY}",
            "Basic Og==",
        ):
            headers = {} if key is None else {"Authorization": key}
            found = httpx.get(running.url + path, headers=headers, trust_env=False)
            assert (found.status_code, set(found.json())) == (401, {"error"}), (path, key)
            kind = found.headers["www-authenticate"].partition(" ")[0]
            assert kind == ("Basic" if path == "/" else "Bearer")
    assert httpx.post(running.url, trust_env=False).headers["www-authenticate"] == "Bearer"


def test_a_key_as_a_browser_sends_it_reads_and_asks(running: Running) -> None:
    with httpx.Client(base_url=running.url, headers={"Authorization": basic(KEY)}, trust_env=False) as http:
        for path in (*PATHS, "/v1/models", "/v1/prompts", "/v1/prompts/p1", "/openapi.json", "/metrics"):
            assert http.get(path).status_code == 200
        assert http.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link that was followed
        assert http.post("/v1/chat/completions", json=ASKED).status_code == 200
        text = {"model": "p1", "prompt": "a", "max_tokens": 1}
        own = {"Sec-Fetch-Site": "same-origin", "Origin": running.url}
        assert http.post("/v1/completions", json=text, headers=own).status_code == 200
        assert http.post("/v1/completions", json=text, headers={"Origin": running.url}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "SELF"},
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "text/plain; application/json"},
        {"Content-Type": ""},
    ],
    ids=str,
)
def test_a_page_of_another_site_cannot_ask_with_a_browsers_key(running: Running, headers: dict[str, str]) -> None:
    headers = {name: running.url if value == "SELF" else value for name, value in headers.items()}
    headers = {"Content-Type": "application/json", **headers}
    asked = {"content": json.dumps(ASKED), "headers": {**headers, "Authorization": basic(KEY)}, "trust_env": False}
    found = httpx.post(f"{running.url}/v1/chat/completions", **asked)
    assert (found.status_code, found.json()["error"]["code"]) == (403, "bearer_needed")


def test_a_browsers_key_changes_nothing(serve: Serve, prompt_folders: Path, tmp_path: Path) -> None:
    shutil.copytree(prompt_folders / "p0", tmp_path / "p0")
    running = serve(prompts_root=tmp_path)
    headers = {"Authorization": basic(KEY), "Sec-Fetch-Site": "same-origin", "Origin": running.url}
    with httpx.Client(base_url=running.url, headers=headers, trust_env=False) as http:
        assert http.post("/v1/prompts", json={"name": "new", "folder": "p0"}).status_code == 403
        assert http.delete("/v1/prompts/p0").status_code == 403
    assert list(running.parts.prompts.prompts) == ["p0"]


def test_the_page_without_keys_and_without_prompts(serve: Serve) -> None:
    running = serve(keys=())
    with httpx.Client(base_url=running.url, trust_env=False) as http:
        assert "ptune playground" in http.get("/").text
        (frozen,) = http.get("/v1/models").json()["data"]
        assert (frozen["id"], frozen["chat"], frozen["root"]) == ("tiny", False, None)
        assert http.get("/v1/prompts").json()["data"] == []


def with_details(folder: Path, log: str | None = None, **changed: Any) -> None:
    """Change what a prompt folder says of itself."""
    path = folder / "ptune.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    if log is not None:
        (folder / "metrics.jsonl").write_text(log)


def test_a_card_tells_how_a_prompt_was_made(serve: Serve, prompt_folders: Path, tmp_path: Path) -> None:
    shutil.copytree(prompt_folders / "p0", tmp_path / "p0")
    with_details(
        tmp_path / "p0",
        '{"step": 1, "loss": 2.5}\n{"step": 1, "eval_loss": 2.25}\n{"step": 2, "loss": 1.5}\n',
        data_report={"rows_read": 12, "kept": 11, "files": ["/home/somebody/data.json"]},
        tokens_report={"kept": 10},
        data="/home/somebody/data.json",
        metrics={"train_loss": 2.0, "held_out_loss_before": 3.0, "held_out_loss_after": 1.25, "steps": 2},
    )
    running = serve(tmp_path)
    with running.http() as http:
        (listed,) = http.get("/v1/prompts").json()["data"]
        text = http.get("/v1/prompts/p0").text
    found = json.loads(text)
    assert {**found, **listed} == found
    assert found["base_model"] == running.parts.model.base.config._name_or_path.rpartition("/")[2]
    assert (found["encoder"], found["token_dim"], found["written_by"]) == ("embedding", 32, "ptune")
    assert (found["rows_read"], found["rows_trained_on"], found["steps"]) == (12, 10, 2)
    assert (found["train_loss"], found["held_out_loss_before"], found["held_out_loss_after"]) == (2.0, 3.0, 1.25)
    assert found["written"] == int((tmp_path / "p0" / "ptune.json").stat().st_mtime)
    assert found["loss_curve"] == {
        "training": [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5}],
        "held_out": [{"step": 1, "loss": 2.25}],
        "note": None,
    }
    assert "somebody" not in text
    assert str(tmp_path) not in text


def test_a_card_of_a_folder_that_says_little_or_nonsense(serve: Serve, prompt_folders: Path, tmp_path: Path) -> None:
    for name in ("bare", "odd"):
        shutil.copytree(prompt_folders / "p0", tmp_path / name)
    with_details(
        tmp_path / "odd",
        encoder="<img src=x>\u202e" + "x" * 5000,
        trainable_parameters=-5,
        metrics={
            "train_loss": float("nan"),
            "held_out_loss_before": "low",
            "held_out_loss_after": 10**400,
            "steps": [],
        },
        data_report={"rows_read": {}},
        tokens_report={"kept": True},
    )
    (tmp_path / "odd" / "metrics.jsonl").symlink_to("/etc/passwd")
    with serve(tmp_path).http() as http:
        bare, odd = (http.get(f"/v1/prompts/{name}").json() for name in ("bare", "odd"))
    assert bare["loss_curve"]["note"] == "No loss history is saved with this prompt."
    assert odd["loss_curve"]["note"] == "The loss history saved with this prompt cannot be read."
    assert bare["loss_curve"]["training"] == odd["loss_curve"]["training"] == []
    unsaid = ("rows_read", "rows_trained_on", "steps", "train_loss", "held_out_loss_before", "held_out_loss_after")
    for found in (bare, odd):
        assert {found[name] for name in unsaid} == {None}
    assert odd["trainable_parameters"] is None
    assert odd["encoder"].startswith("<img src=x>\\u202e")
    assert len(odd["encoder"]) < 300


@pytest.mark.parametrize("name", ["nowhere", "tiny", "..", "%2e%2e%2f%2e%2e%2fetc", "p1/../p2", "p1%00", "", "p1/"])
def test_a_card_that_is_not_there(running: Running, name: str) -> None:
    with running.http() as http:
        found = http.get(f"/v1/prompts/{name}")
    assert found.status_code == (200 if name == "p1/../p2" else 404)  # which is p2, said in another way, to the client
    assert name == "p1/../p2" or set(found.json()) == {"error"}
