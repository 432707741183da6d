"""Does `ptune serve --upstream` in front of vLLM servers give ptune's answers, and does it lose none when one dies?

    python benchmarks/gateway.py --vllm-python PYTHON --model EXPORTED --base MODEL --prompts DIR DIR --data F [--inputs 50]

`EXPORTED` is `ptune export DIR DIR --to model --model MODEL`, `MODEL` a folder with the frozen model; vLLM serves both
in float32, from an environment of its own.

- *tokens*: two vLLM servers of EXPORTED, and the gateway. Every input behind every prompt, 16 clients, the prompts
  mixed, temperature 0; each answer beside `Answerer.answer`, which is `ptune generate`.
- *killed*: the same once more, and one of the servers gets SIGKILL when a quarter is answered.
- *embeddings*: one vLLM server of MODEL with `--enable-prompt-embeds`, and the gateway with the prompt folders.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_servers import Engine, vllm_server
from harness import RESULTS, ROOT, heading, write
from ptune.answering import Answerer
from served import Served, chat, load

WHAT = "ptune serve --upstream in front of vLLM: answers beside ptune generate, and what a killed server costs."
CLIENTS, NEW_TOKENS = 16, 48


def wanted(options: argparse.Namespace, inputs: Sequence[str]) -> dict[tuple[str, str], str]:
    """What `ptune generate` says to every input behind every prompt."""
    found = {}
    for folder in options.prompts:
        answerer = Answerer.open(folder, model=str(options.base), dtype="float32")
        for text in inputs:
            found[folder.name, text] = answerer.answer(text, max_new_tokens=NEW_TOKENS)
    return found


def asked(gateway: Served, pairs: Sequence[tuple[str, str]], after: Any = lambda _done: None) -> list[str]:
    """What the gateway says to each."""
    bodies = [chat(name, text, NEW_TOKENS) for name, text in pairs]
    _, answers, _ = load(gateway, bodies, CLIENTS, after)
    return [one["choices"][0]["message"]["content"] for one in answers]


def compared(said: Sequence[str], pairs: Sequence[tuple[str, str]], right: dict[tuple[str, str], str]) -> dict[str, Any]:
    """How many are equal."""
    different = [
        {"prompt": pair[0], "text": pair[1], "ptune": right[pair], "gateway": text}
        for pair, text in zip(pairs, said, strict=True)
        if text != right[pair]
    ]
    return {"answers": len(said), "equal": len(said) - len(different), "different": different}


def with_tokens(options: argparse.Namespace, at: Path, right: dict[tuple[str, str], str]) -> dict[str, Any]:
    """Two servers of the exported model; then one of them is killed."""
    pairs = list(right)
    servers = [vllm_server(options.vllm_python, options.model, at / f"vllm-{n}.log") for n in range(2)]
    with servers[0] as first, servers[1] as second:
        urls = [first.url, second.url]
        with Served("--model", options.model, "--upstream", *urls, threads=1, dtype=None) as gateway:
            memory = gateway.resident_mib
            found = compared(asked(gateway, pairs), pairs, right)

            def kill(done: int) -> None:
                if done == len(pairs) // 4:
                    second.process.kill()

            killed = compared(asked(gateway, pairs, kill), pairs, right)
            failed = [one["reason"] for one in gateway.log if one["message"] == "an upstream did not answer"]
    return {
        "tokens": {**found, "gateway_start_seconds": gateway.start_seconds, "gateway_resident_mib": memory},
        "killed": {**killed, "lost_at_the_upstream_and_asked_again": len(failed), "reasons": sorted(set(failed))},
    }


def with_embeddings(options: argparse.Namespace, at: Path, right: dict[tuple[str, str], str]) -> dict[str, Any]:
    """One server of the frozen model, which is sent embeddings."""
    pairs = list(right)
    log = at / "vllm-embeds.log"
    with vllm_server(options.vllm_python, options.base, log, "--enable-prompt-embeds") as server:
        flags = ["--model", options.base, "--upstream", server.url, "--prompts", *options.prompts]
        with Served(*flags, threads=1, dtype=None) as gateway:
            found = compared(asked(gateway, pairs), pairs, right)
            memory = gateway.resident_mib
    return {"embeddings": {**found, "gateway_resident_mib": memory}}


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=WHAT)
    parser.add_argument("--vllm-python", required=True, help="Python of an environment with vLLM")
    parser.add_argument("--model", type=Path, required=True, help="the exported model")
    parser.add_argument("--base", type=Path, required=True, help="the frozen model, a folder")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with `instruction`")
    parser.add_argument("--inputs", type=int, default=50)
    parser.add_argument("--output", type=Path, default=RESULTS / "gateway.json")
    options = parser.parse_args()
    command = shlex.join(["python", "benchmarks/gateway.py", *sys.argv[1:]]).replace(f"{ROOT}/", "")
    rows = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()]
    right = wanted(options, [row["instruction"] for row in rows[: options.inputs]])
    result = heading(WHAT, command)
    with tempfile.TemporaryDirectory() as folder:
        for part in (with_tokens, with_embeddings):
            result |= part(options, Path(folder), right)
            write(result, options.output)
    for name in ("tokens", "killed", "embeddings"):
        print(name, json.dumps({key: value for key, value in result[name].items() if key != "different"}, indent=1))


if __name__ == "__main__":
    main()
