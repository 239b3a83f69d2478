"""A base small enough for tests: a random Llama and a byte-level tokenizer made in code."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zcontext.config import CodecConfig
from zcontext.loading import LoadedBase
from zcontext.model import ZLanguageModel

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and three special ones: 259 ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_base(*, seed: int = 0, n_layers: int = 4) -> LoadedBase:
    """A random fp32 Llama over `tiny_tokenizer`."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    return LoadedBase(
        model=model,
        tokenizer=tokenizer,
        name=f"tiny-{seed}",
        sha256=f"{seed:064x}",
        quantization="none",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def tiny_z(*, seed: int = 0, depth: int = 3, size: int = 32, named: bool = False) -> ZLanguageModel:
    """A codec with random values everywhere, in what starts at zero too.

    Codes that are names are those of the last tokens, which are bytes.
    """
    sizes = {"writer_layers": 2, "lora_rank": 4, "lora_alpha": 4}
    config = CodecConfig(depth=depth, size=size, shared=named, named=named, **sizes)
    model = ZLanguageModel.create(tiny_base(seed=seed), config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in [
            *model.parameters_of(("compress", "decompress", "infer")).values(),
            *model.codebook.parameters(),
        ]:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    if model.codebook.lexicon is not None:
        tokens = range(max(0, model.base_vocab - size + 1), model.base_vocab)
        model.codebook.lexicon.name([(token,) for token in tokens])
    model.seal()
    return model


def tiny_focused(*, seed: int = 0, **codec: Any) -> ZLanguageModel:
    """A codec, as `tiny_z` makes it, whose focus has an idea of its own."""
    model = tiny_z(seed=seed, **codec)
    focus = model.add_focus()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for tensor in focus.parameters():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    model.seal()
    return model
