"""`ptune export`: what PEFT, a safetensors reader and a vLLM client get; nothing of somebody else's is replaced."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from commands import Ran, run


def refused(ran: Ran, *fragments: str) -> None:
    assert ran.code == 2, ran.err
    assert ran.err.startswith("ptune export: error: ")
    assert ran.err.count("\n") == 1, ran.err
    assert ran.out == ""
    for fragment in fragments:
        assert fragment in ran.err, ran.err


def exported(*words: object) -> dict[str, Any]:
    ran = run("export", *words, "--json")
    assert (ran.code, ran.err) == (0, "")
    found: dict[str, Any] = json.loads(ran.out)
    return found


@pytest.fixture
def vectors(prompt_dir: Path) -> torch.Tensor:
    return load_file(prompt_dir / "adapter_model.safetensors")["prompt_embeddings"]


def test_for_peft(prompt_dir: Path, tiny_model_dir: Path, vectors: torch.Tensor, tmp_path: Path):
    from peft import PeftConfig, PeftModel

    found = exported(prompt_dir, "--to", "peft", "--output", tmp_path / "a" / "adapter")
    assert (found["to"], found["virtual_tokens"], found["token_dim"]) == ("peft", 4, 32)
    folder = tmp_path / "a" / "adapter"
    assert sorted(path.name for path in folder.iterdir()) == sorted(found["files"])
    assert set(found["files"]) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert PeftConfig.from_pretrained(str(folder)).base_model_name_or_path == str(tiny_model_dir)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), str(folder))
    assert torch.equal(theirs.prompt_encoder["default"].embedding.weight, vectors)
    # The form is a prompt folder's own adapter.
    whole = json.loads((prompt_dir / "adapter_config.json").read_text())
    assert json.loads((folder / "adapter_config.json").read_text()) == whole


def test_plain_embeddings(prompt_dir: Path, tiny_model_dir: Path, vectors: torch.Tensor, tmp_path: Path):
    path = tmp_path / "soft.safetensors"
    ran = run("export", prompt_dir, "--to", "embeds", "--output", path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"embeds: 4 virtual tokens × 32, {path.stat().st_size:,} bytes: {path}\n"
    with safe_open(path, framework="pt") as stored:
        assert list(stored.keys()) == ["prompt_embeds"]
        facts = stored.metadata()
        assert torch.equal(stored.get_tensor("prompt_embeds"), vectors)
    assert (facts["base_model"], facts["virtual_tokens"], facts["template"]) == (str(tiny_model_dir), "4", "tutorial")
    assert facts["base_fingerprint"] == json.loads((prompt_dir / "ptune.json").read_text())["base_fingerprint"]


class Server(BaseHTTPRequestHandler):
    """Speaks as a vLLM server does, and keeps what it was asked."""

    asked: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "served"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        self._answer({"choices": [{"text": "in full", "message": {"content": "in chat"}}]})

    def _answer(self, value: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def ask(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the exported program in this process."""
    spec = importlib.util.spec_from_file_location("vllm_example", folder / "example.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.setattr("sys.argv", ["example.py", *words])
    capsys.readouterr()
    program.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_for_vllm(
    dtype: str,
    prompt_dir: Path,
    vectors: torch.Tensor,
    tiny_model_dir: Path,
    tmp_path: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = tmp_path / "vllm"
    found = exported(prompt_dir, "--to", "vllm", "--output", folder, "--dtype", dtype, "--text", "Where is it?")
    assert set(found["files"]) == {"prompt_embeds.b64", "request.json", "template.jinja", "example.py", "README.md"}
    payload = (folder / "prompt_embeds.b64").read_text().strip()
    tensor = torch.load(io.BytesIO(base64.b64decode(payload, validate=True)), weights_only=True)
    assert torch.equal(tensor, vectors.to(getattr(torch, dtype)))
    request = json.loads((folder / "request.json").read_text())
    assert request["messages"][0]["content"] == [
        {"type": "prompt_embeds", "data": payload},
        {"type": "text", "text": "Human: Where is it?\n\nAssistant: "},
    ]
    # The template writes what the messages hold, and nothing else.
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(
        (folder / "template.jinja").read_text()
    )
    parts = [{"type": "text", "text": "<here>"}, {"type": "text", "text": " Human: a\n\nAssistant: "}]
    messages = [{"role": "user", "content": parts}, {"role": "user", "content": "b "}]
    assert template.render(messages=messages, add_generation_prompt=True) == "<here> Human: a\n\nAssistant: b "

    assert ask(folder, monkeypatch, capsys, "--server", server, "a\nb") == "in chat\n"
    path, body = Server.asked[-1]
    assert path == "/v1/chat/completions"
    assert body["model"] == "served"
    assert body["messages"][0]["content"][1]["text"] == "Human: a\nb\n\nAssistant: "
    assert body["messages"][0]["content"][0]["data"] == payload

    assert (
        ask(folder, monkeypatch, capsys, "--server", server, "--completions", "--max-tokens", "7", "a") == "in full\n"
    )
    path, body = Server.asked[-1]
    assert (path, body["max_tokens"], body["temperature"]) == ("/v1/completions", 7, 0)
    whole = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
    ids = AutoTokenizer.from_pretrained(tiny_model_dir)("Human: a\n\nAssistant: ")["input_ids"]
    table = load_file(tiny_model_dir / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(whole, torch.cat([vectors, table[ids]]).to(getattr(torch, dtype)))


def test_the_readme_names_the_flags_of_the_server(prompt_dir: Path, tiny_model_dir: Path, tmp_path: Path):
    exported(prompt_dir, "--to", "vllm", "--output", tmp_path / "v")
    text = (tmp_path / "v" / "README.md").read_text()
    assert f"vllm serve {tiny_model_dir} --enable-prompt-embeds" in text
    assert "--chat-template template.jinja --chat-template-content-format openai" in text
    assert "@" not in text.replace("@request.json", "")


def test_a_template_of_ones_own_and_a_first_token(prompt_dir: Path, tiny_model_dir: Path, tmp_path: Path):
    """The text part is the whole text: what the template writes, behind the token that the tokenizer puts first."""
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    core = json.loads((model / "tokenizer.json").read_text())
    core["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
    }
    (model / "tokenizer.json").write_text(json.dumps(core))
    words = ["--model", model, "--text", "x", "--template"]
    for at, (template, wanted) in enumerate(
        [("Q: {instruction} A: {output}", "<bos>Q: x A: "), ("{{a}} {input}={output}", "<bos>{a} x=")]
    ):
        exported(prompt_dir, "--to", "vllm", "--output", tmp_path / str(at), *words, template)
        request = json.loads((tmp_path / str(at) / "request.json").read_text())
        assert request["messages"][0]["content"][1]["text"] == wanted
    twice = "{instruction} {instruction} {output}"
    refused(
        run("export", prompt_dir, "--to", "vllm", "--output", tmp_path / "c", *words, twice),
        "writes the text 2 times",
        "--template",
    )


@pytest.mark.parametrize("form", ["peft", "embeds", "vllm"])
def test_an_export_replaces_an_export_and_nothing_else(form: str, prompt_dir: Path, tmp_path: Path):
    output = tmp_path / ("out.safetensors" if form == "embeds" else "out")
    words = ["export", prompt_dir, "--to", form, "--output", output]
    assert run(*words).code == 0
    refused(run(*words), "out", "--overwrite")
    assert run(*words, "--overwrite").code == 0
    if form == "embeds":
        save_file({"prompt_embeds": torch.zeros(1)}, output)
        before = output.read_bytes()
        refused(run(*words, "--overwrite"), "no export of ptune's", "Choose another output")
        assert output.read_bytes() == before
        output.write_bytes(b"text")
        refused(run(*words, "--overwrite"), "no export of ptune's")
        return
    (output / "mine.txt").write_text("kept")
    assert run(*words, "--overwrite").code == 0
    assert (output / "mine.txt").read_text() == "kept"
    (output / "README.md").write_text("mine")
    refused(run(*words, "--overwrite"), "no export of ptune's", "Choose another output")
    assert (output / "README.md").read_text() == "mine"
    before = {path.name: path.read_bytes() for path in prompt_dir.iterdir() if path.is_file()}
    own = Path(shutil.copytree(prompt_dir, tmp_path / "own"))
    refused(run("export", own, "--to", form, "--output", own, "--overwrite"), "no export of ptune's")
    assert {path.name: path.read_bytes() for path in own.iterdir() if path.is_file()} == before


def test_wrong_words(prompt_dir: Path, tmp_path: Path):
    out = ["--output", tmp_path / "out"]
    refused(run("export", prompt_dir, *out), "--to")
    refused(run("export", prompt_dir, "--to", "peft"), "--output")
    refused(run("export", prompt_dir, "--to", "gguf", *out), "invalid choice: 'gguf'")
    refused(run("export", prompt_dir, "--to", "embeds", *out), "'out' does not end in .safetensors")
    for name in ("dtype", "text", "template", "model"):
        value = "float32" if name == "dtype" else "x"
        refused(run("export", prompt_dir, "--to", "peft", *out, f"--{name}", value), f"--{name} is for --to vllm")
    for flag in (("--name", "x"), ("--max-shard-size", "1GB"), ("--device", "cpu"), ("--no-measure",), ("--force",)):
        refused(
            run("export", prompt_dir, "--to", "vllm", *out, *flag), f"{flag[0]} is for --to model, not for --to vllm"
        )
    refused(run("export", prompt_dir, "--to", "vllm", *out, "--dtype", "float16"), "float16 is for --to model")
    refused(run("export", prompt_dir, prompt_dir, "--to", "peft", *out), "takes one prompt, and there are 2")
    refused(run("export", prompt_dir, "--to", "vllm", *out, "--dtype", "int4"), "invalid choice: 'int4'")
    refused(run("export", prompt_dir, "--to", "vllm", *out, "--model", tmp_path / "none"), "none")
    refused(run("export", prompt_dir, "--to", "vllm", *out, "--template", "nothing"), "unknown template 'nothing'")
    refused(run("export", tmp_path / "none", "--to", "peft", *out), "no prompt folder", "none")
    refused(run("export", "nobody/prompt", "--to", "peft", *out), "no prompt folder 'nobody/prompt' here", "hub")
    refused(run("export", tmp_path, "--to", "peft", *out), "not a prompt folder")
    (tmp_path / "file").write_text("")
    refused(run("export", prompt_dir, "--to", "peft", "--output", tmp_path / "file"), "is a file")
    refused(run("export", prompt_dir, "--to", "vllm", "--output", tmp_path / "file" / "x"), "cannot make the folder")
    refused(run("export", prompt_dir, "--to", "embeds", "--output", tmp_path / "file" / "x.safetensors"), "cannot")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_pefts_with_no_model_named(tmp_path: Path):
    import peft

    from architectures import build

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(build("llama"), config).save_pretrained(tmp_path / "a")
    assert exported(tmp_path / "a", "--to", "peft", "--output", tmp_path / "b")["token_dim"] == 32
    refused(
        run("export", tmp_path / "a", "--to", "vllm", "--output", tmp_path / "c"), "does not name its base", "--model"
    )


def test_keys_and_values_are_for_peft_alone(tmp_path: Path):
    import peft

    from architectures import build

    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(build("llama"), config).save_pretrained(tmp_path / "a")
    for form, name in (("embeds", "c.safetensors"), ("vllm", "c"), ("model", "c")):
        ran = run("export", tmp_path / "a", "--to", form, "--output", tmp_path / name)
        refused(ran, "keys and values of every layer", f"--to {form}", "--to peft")
        assert not (tmp_path / name).exists()
    found = exported(tmp_path / "a", "--to", "peft", "--output", tmp_path / "b")
    assert (found["virtual_tokens"], found["token_dim"]) == (3, 64)
    stored = [load_file(tmp_path / one / "adapter_model.safetensors")["prompt_embeddings"] for one in "ab"]
    assert torch.equal(*stored)
    peft.PeftModel.from_pretrained(build("llama"), str(tmp_path / "b"))


def test_a_whole_model(prompt_dir: Path, tmp_path: Path):
    folder = tmp_path / "models" / "with prompts"
    words = (prompt_dir, prompt_dir, "--to", "model", "--output", folder, "--name", "a", "--name", "b.2")
    found = exported(*words)
    assert found["prompts"] == {"a": 4, "b.2": 4}
    assert found["first_ids"] == {"a": 128, "b.2": 132}
    assert (found["vocab_size"], found["embeddings_were_tied"]) == (136, False)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found["files"] == files
    assert found["bytes"] == sum((folder / name).stat().st_size for name in files)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "system", "content": "ptune:b.2"}, {"role": "user", "content": "red blue"}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**asked, max_new_tokens=8, do_sample=False)[0, asked["input_ids"].shape[1] :]
    ran = run("generate", prompt_dir, "red blue", "--max-new-tokens", 8, "--dtype", "float32")
    assert ran.out == tokenizer.decode(out, skip_special_tokens=True) + "\n"
    card = (folder / "README.md").read_text()
    assert "2 soft prompts" in card
    assert "ptune:a" in card
    refused(run("export", *words), "is not empty", "--overwrite")
    ran = run("export", *words, "--overwrite", "--no-measure", "--dtype", "float16", "--max-shard-size", "20KB")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0].startswith("model: 2 prompts, 8 virtual tokens, ")
    assert "not measured" in ran.out
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float16


def test_a_whole_model_that_cannot_be(prompt_dir: Path, tmp_path: Path):
    out = ("--to", "model", "--output", tmp_path / "out")
    refused(run("export", prompt_dir, prompt_dir, *out), f"two prompts are named {prompt_dir.name!r}", "--name")
    refused(run("export", prompt_dir, *out, "--name", "a b"), "'a b' cannot be part of a token")
    refused(run("export", prompt_dir, *out, "--name", "a", "--name", "b"), "given 2 times for 1 prompts")
    refused(run("export", prompt_dir, *out, "--max-shard-size", "5 apples"), "'5 apples' is no size", "5GB")
    refused(run("export", prompt_dir, *out, "--device", "nowhere"), "unknown device 'nowhere'")
    refused(run("export", tmp_path / "none", *out), "none")
    assert list(tmp_path.iterdir()) == []
