"""The page in a browser, where there is one: nothing on its console, and no request to anywhere."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium")]


class Net:
    """Everything that is asked for over HTTP, whatever host it is asked of; only the page is there."""

    def __init__(self) -> None:
        self.page = b""
        self.asked: list[str] = []
        net = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host = self.headers.get("Host", "")
                if host.endswith(".test"):  # not what the browser asks its maker for
                    net.asked.append(host + self.path)
                here = self.path == "/report.html"
                self.send_response(200 if here else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(net.page if here else b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def look(net: Net, folder: Path, size: str) -> tuple[Path, str]:
    """A screenshot, and what the browser said."""
    assert BROWSER is not None
    picture = folder / "page.png"
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={size}", f"--screenshot={picture}",
        f"--host-resolver-rules=MAP * 127.0.0.1:{net.server.server_port}", "http://page.test/report.html",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return picture, ran.stderr


@pytest.mark.parametrize("size", ["1280,2400", "390,3000"])
def test_the_page_says_and_asks_nothing(compared: Path, net: Net, tmp_path: Path, size: str):
    net.page = (compared / "report.html").read_bytes()
    picture, said = look(net, tmp_path, size)
    assert picture.stat().st_size > 50_000, said
    assert "CONSOLE" not in said
    assert net.asked == ["page.test/report.html"]


def test_a_page_that_did_would_be_noticed(net: Net, tmp_path: Path):
    net.page = b"<img src='http://elsewhere.test/x.png'><script>console.error('a word')</script>"
    _, said = look(net, tmp_path, "300,300")
    assert "CONSOLE" in said
    assert "elsewhere.test/x.png" in net.asked
