"""The files with which a vLLM server answers behind a soft prompt, one prompt a request.

Exact or not is a question of order. A prompt was trained with its virtual tokens first and the text behind them. A chat
template of a model's own writes the opening of the user's turn before what the message holds, so the virtual tokens
would stand in the middle; and where a template takes a message as one string, vLLM joins its parts by a line break. So
the folder brings a chat template that writes what the messages hold and nothing else: the virtual tokens come first,
and the text part is the whole text, as the prompt's own template writes it. `/v1/completions` needs no template, but
takes the embeddings of the whole prompt, so the text must be embedded by whoever asks.

Written for vLLM 0.32; the payload is the base64 text of a `(P, D)` tensor from `torch.save`.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass

PAYLOAD, REQUEST, CHAT_TEMPLATE, EXAMPLE, README = (
    "prompt_embeds.b64",
    "request.json",
    "template.jinja",
    "example.py",
    "README.md",
)
_NEW_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, and how the prompt's template writes it."""

    model: str
    """The frozen model."""
    template: str
    """As `ptune.data.template.get_template` takes it."""
    text: str
    """What the user says."""
    before: str
    """What the template writes before it, the tokenizer's own leading tokens included."""
    after: str
    """What the template writes behind it."""


_TEMPLATE = """\
{%- for message in messages -%}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}
  {%- endif -%}
{%- endfor -%}
"""

_EXAMPLE = '''\
"""Ask a vLLM server, behind the soft prompt in this folder.

    python example.py "the text"                  /v1/chat/completions; Python's standard library is enough
    python example.py --completions "the text"    /v1/completions; embeds the text itself, with ptune

README.md says how to start the server.
"""

import argparse
import base64
import io
import json
import urllib.request
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
MODEL = @MODEL@
TEMPLATE = @TEMPLATE@
BEFORE, AFTER = @BEFORE@, @AFTER@
"""What the template that the prompt was trained with writes around the text."""


def call(url, body=None):
    """Send JSON and get JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def chat(server, text, settings):
    """The soft prompt as a content part before the text part."""
    request = json.loads((FOLDER / "request.json").read_text(encoding="utf-8"))
    request["messages"][0]["content"][1]["text"] = BEFORE + text + AFTER
    answer = call(f"{server}/v1/chat/completions", {**request, **settings})
    return answer["choices"][0]["message"]["content"]


def completions(server, text, settings):
    """The whole prompt as embeddings: the soft prompt, then the text through the model's embedding table."""
    import torch
    from ptune import embed_text

    embedded = embed_text(MODEL, TEMPLATE, text)
    payload = base64.b64decode((FOLDER / "prompt_embeds.b64").read_text(encoding="ascii"))
    prompt = torch.load(io.BytesIO(payload), weights_only=True)
    whole = io.BytesIO()
    torch.save(torch.cat([prompt.float(), embedded]).to(prompt.dtype), whole)
    request = {"prompt_embeds": base64.b64encode(whole.getvalue()).decode("ascii"), "temperature": 0}
    return call(f"{server}/v1/completions", {**request, **settings})["choices"][0]["text"]


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="Ask a vLLM server behind the soft prompt in this folder.")
    parser.add_argument("text", nargs="?", default=@TEXT@)
    parser.add_argument("--completions", action="store_true", help="use /v1/completions; needs ptune")
    parser.add_argument("--server", default="http://localhost:8000")
    parser.add_argument("--max-tokens", type=int, default=@NEW_TOKENS@)
    options = parser.parse_args()
    served = call(f"{options.server}/v1/models")["data"][0]["id"]
    ask = completions if options.completions else chat
    print(ask(options.server, options.text, {"model": served, "max_tokens": options.max_tokens}))


if __name__ == "__main__":
    main()
'''

_README = """\
# A soft prompt of @VIRTUAL_TOKENS@ virtual tokens for vLLM

Any number of prompts share one server of their frozen model: each request brings its own.

```console
@SERVE@
python example.py "the text"
curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d @request.json
```

| file | what |
| --- | --- |
| `prompt_embeds.b64` | the payload: base64 of a `torch.save`d tensor (virtual tokens, dimension) |
| `request.json` | a whole chat request: the payload as a content part, then the text |
| `template.jinja` | the server's chat template: writes what the messages hold and nothing else |
| `example.py` | asks the server; Python's standard library is enough |

## The order of things

The prompt was trained with its virtual tokens first and the text behind them. `template.jinja` keeps that order, and
the text part holds the whole text as the prompt's template writes it: that is exact. Without `--chat-template` the
model's own template puts its opening before the virtual tokens, and vLLM may put a line break behind them: the server
answers, but not as trained. `example.py --completions` is exact on any server with `--enable-prompt-embeds`, whatever
its chat template: it embeds the text itself, for which it needs ptune and the model's files.

For answers that are ptune's own to the last token, serve in the dtype that ptune uses (`--dtype float32`).
"""


def vllm_files(payload: str, question: Question, *, virtual_tokens: int) -> dict[str, str]:
    """File name → content.

    Args:
        payload: The base64 text.
        question: What the example asks.
        virtual_tokens: `P`.
    """
    request = {
        "model": question.model,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "prompt_embeds", "data": payload},
                    {"type": "text", "text": question.before + question.text + question.after},
                ],
            }
        ],
        "max_tokens": _NEW_TOKENS,
        "temperature": 0,
    }
    values = {
        "MODEL": repr(question.model),
        "TEMPLATE": repr(question.template),
        "BEFORE": repr(question.before),
        "AFTER": repr(question.after),
        "TEXT": repr(question.text),
        "NEW_TOKENS": str(_NEW_TOKENS),
        "VIRTUAL_TOKENS": str(virtual_tokens),
        "SERVE": _serve(question.model),
    }
    return {
        PAYLOAD: payload + "\n",
        REQUEST: json.dumps(request, ensure_ascii=False) + "\n",
        CHAT_TEMPLATE: _TEMPLATE,
        EXAMPLE: _filled(_EXAMPLE, values),
        README: _filled(_README, values),
    }


def _serve(model: str) -> str:
    """The command that starts the server."""
    flags = "--enable-prompt-embeds \\\n  --chat-template template.jinja --chat-template-content-format openai"
    if not model.startswith("builtin:") and not model.endswith(".gguf"):
        return f"vllm serve {shlex.quote(model)} {flags}"
    return (
        f"# {model} is a name of ptune's: serve a folder with that model, safetensors and tokenizer\n"
        f"vllm serve FOLDER --served-model-name {shlex.quote(model)} {flags}"
    )


def _filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], text)
