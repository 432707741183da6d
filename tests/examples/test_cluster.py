"""The files for a cluster say what `ptune serve` understands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ptune.cli.serve import build_parser

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "cluster"


def compose() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))


def commands() -> list[list[str]]:
    kubernetes = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")))
    (container,) = kubernetes[0]["spec"]["template"]["spec"]["containers"]
    return [compose()["services"]["gateway"]["command"], container["args"]]


@pytest.mark.parametrize("command", commands())
def test_the_gateways_command(command: list[str]) -> None:
    assert command[0] == "serve"
    args = build_parser().parse(command[1:])
    assert len(args.upstream) == 2
    assert (args.model, args.host) == ("/model", "0.0.0.0")
    assert args.api_key_file is not None


def test_what_compose_starts_is_there() -> None:
    services = compose()["services"]
    assert {f"http://{name}:8000" for name in services if name != "gateway"} == set(services["gateway"]["command"][2:4])
    built = services["gateway"]["build"]
    assert (FOLDER / built["context"] / built["dockerfile"]).is_file()
    assert (FOLDER / "Dockerfile").read_text(encoding="utf-8").rstrip().endswith('ENTRYPOINT ["ptune"]')
