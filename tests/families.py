"""Small tokenizers with chat templates in the form of well-known families, trained in the test on the project's own prompts.

Templates and vocabularies are written here; what is taken from a family is its form: which tokens are special, whether the tokenizer
puts a begin-of-sequence token in front, how blanks become tokens, what the template does with a system turn, blanks and dates.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from shared.records import DATA

VOCABULARY = 700  # of the trained part; special tokens come behind it
# how Llama 3 and Qwen2 cut text before bytes are merged
CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}"
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}"
    "{% for message in turns %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN_2 = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a model of a test.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
QWEN_3 = (
    "{% set ns = namespace(last=-1) %}"
    "{% for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% set content = message.content %}{% set thought = '' %}"
    "{% if message.role == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' + content.lstrip('\n') }}{% else %}{{ content }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
GEMMA_3 = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set before = messages[0].content + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set before = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' + (before if loop.first else '') }}"
    "{{ message.content | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_2 = (  # refuses a system turn
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' + message.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (  # the system prompt stands in the last user turn
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if message.role == 'user' %}"
    "{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + message.content + '[/INST]' }}"
    "{% elif loop.index0 == turns | length - 2 and turns[-1].role == 'assistant' and system is defined %}"
    "{{ '[INST] ' + system + '\n\n' + message.content + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + message.content + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)
PHI_3 = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI_4 = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
OLMO_2 = (  # headers are ordinary text
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' + message.content + (eos_token if message.role == 'assistant' else '') }}"
    "{% if not (loop.last and message.role == 'assistant') %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
REASONER = (  # every answer begins within a thought, and the thoughts of earlier turns are dropped
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}"
    "{% elif message.role == 'user' %}{{ '<|User|>' + message.content }}"
    "{% else %}{{ '<|Assistant|>' + message.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """How a family writes a chat.

    Args:
        kind: `bytes` (byte-level BPE), `sentencepiece` (BPE over ▁, bytes as a last resort) or `prefixed` (the same with a ▁ put in front
            of a text).
        special: special tokens, in the order of their ids behind the vocabulary.
        words: added tokens that are not special.
        end: the token that ends an assistant's turn.
        stops: the eos_token_id of generation_config.json, by name.
        adds_bos: the tokenizer itself puts bos in front of a text.
        swallows: special tokens take the blanks behind them (Phi-3).
        system: what the template does with a system turn: kept, or refused.
        thinking: none, optional or always.
        dated: the template writes the day's date.
    """

    name: str
    template: str
    kind: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    end: str
    stops: tuple[str, ...]
    words: tuple[str, ...] = ()
    adds_bos: bool = False
    swallows: bool = False
    system: str = "kept"
    thinking: str = "none"
    dated: bool = False


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TURNS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
FAMILIES = {
    family.name: family
    for family in (
        Family(
            "llama3", LLAMA_3, "bytes",
            ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
            "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
            adds_bos=True, dated=True,
        ),
        Family("qwen2", QWEN_2, "bytes", _IM, None, "<|im_end|>", "<|im_end|>", ("<|im_end|>", "<|endoftext|>")),
        Family(
            "qwen3", QWEN_3, "bytes", _IM, None, "<|im_end|>", "<|im_end|>", ("<|im_end|>", "<|endoftext|>"),
            words=("<think>", "</think>"), thinking="optional",
        ),
        Family(
            "gemma3", GEMMA_3, "sentencepiece", _TURNS, "<bos>", "<eos>", "<end_of_turn>", ("<eos>", "<end_of_turn>"),
            words=("\n\n",), adds_bos=True,
        ),
        Family(
            "gemma2", GEMMA_2, "sentencepiece", _TURNS, "<bos>", "<eos>", "<end_of_turn>", ("<eos>",),
            words=("\n\n",), adds_bos=True, system="refused",
        ),
        Family(
            "mistral", MISTRAL, "prefixed", ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", "</s>", ("</s>",), adds_bos=True,
        ),
        Family(
            "phi3", PHI_3, "prefixed", ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
            "<s>", "<|endoftext|>", "<|end|>", ("<|endoftext|>", "<|assistant|>", "<|end|>"), swallows=True,
        ),
        Family(
            "phi4", PHI_4, "bytes", (*_IM, "<|im_sep|>"), "<|endoftext|>", "<|im_end|>", "<|im_end|>", ("<|endoftext|>", "<|im_end|>"),
        ),
        Family("olmo2", OLMO_2, "bytes", ("<|endoftext|>", "<|pad|>"), "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", ("<|endoftext|>",)),
        Family(
            "reasoner", REASONER, "bytes", ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>"), "<|begin|>", "<|end|>", "<|end|>", ("<|end|>",),
            words=("<think>", "</think>"), adds_bos=True, thinking="always",
        ),
    )
}  # fmt: skip


@functools.cache
def _trained(kind: str) -> dict[str, Any]:
    """A tokenizer of a kind without special tokens, as its JSON."""
    texts = [(DATA / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("dilemmas", "contexts")]
    corpus = [str(json.loads(line)["prompt"]) for text in texts for line in text.splitlines()]
    backend = Tokenizer(models.BPE())
    alphabet: list[str] = []
    if kind == "bytes":
        cut = pre_tokenizers.Split(Regex(CUT), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "prefixed":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        tail = [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), *tail])
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False, initial_alphabet=alphabet))  # fmt: skip
    whole: dict[str, Any] = json.loads(backend.to_str())
    if kind != "bytes":
        vocab = whole["model"]["vocab"]
        for piece in ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]:
            vocab[piece] = len(vocab)
        whole["model"].update(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    return whole


def tokenizer_of(family: Family) -> Any:
    """The family's tokenizer, with its chat template."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(json.dumps(_trained(family.kind)))
    backend.add_special_tokens(
        [AddedToken(name, rstrip=family.swallows, normalized=False, special=True) for name in family.special]
    )
    backend.add_tokens([AddedToken(name, normalized=False, special=False) for name in family.words])
    if family.adds_bos:
        bos = family.bos
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos, pad_token=family.special[0],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.chat_template = family.template
    return made


def write_tokenizer(family: Family, folder: Path) -> Path:
    """The tokenizer's files and generation_config.json in a folder, which a model's config.json and weights complete."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer_of(family)
    made.save_pretrained(folder)
    stops = [made.convert_tokens_to_ids(name) for name in family.stops]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    return folder
