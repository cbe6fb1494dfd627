"""Small random models with tokenizers of their own, and tasks of lm-eval that need no hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

#: Longest text of the models, short enough for texts to be cut and read in windows.
LONGEST = 48

SENTENCE = "the cat sat on a mat while seven dogs ran home and said that it was late , was it not ?"
WORDS = SENTENCE.split()

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tokenizer(bos: bool) -> Any:
    """Byte-level; with ``bos`` every text that is encoded begins with one."""
    special = ["<s>", "<|end|>", "<|user|>", "<|assistant|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>"} if bos else {}
    out = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>", **names)
    out.add_special_tokens({"additional_special_tokens": special[2:]})
    out.chat_template = TEMPLATE
    return out


def build(folder: Path, kind: str) -> Path:
    """``llama`` begins with BOS; ``qwen`` does not, and pads its embedding; ``gpt2`` has learned positions."""
    torch.manual_seed(0)
    made = tokenizer(bos=kind == "llama")
    size = len(made)
    common: dict[str, Any] = {"initializer_range": 0.3, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": None}
    llama: dict[str, Any] = {
        **common, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": LONGEST,
    }  # fmt: skip
    model: Any
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(vocab_size=size, **llama))
    elif kind == "qwen":
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=size + 24, tie_word_embeddings=True, **llama))
        with torch.no_grad():  # as nobody has trained them: never the likeliest, and a share of the probability
            model.lm_head.weight[size:] *= 0.1
    else:
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=LONGEST, **common)
        )
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: build(root / kind, kind) for kind in ("llama", "qwen", "gpt2")}


LOADER = """
import random
import datasets

WORDS = {words!r}


def _text(rng, low, high):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def load(**_):
    rng = random.Random(0)
    rows = []
    for n in range(12):
        choices = [_text(rng, 1, 4) for _ in range(3)]
        rows.append({{"text": _text(rng, 2, 60), "choices": choices, "gold": n % 3, "answer": _text(rng, 1, 1)}})
    return datasets.DatasetDict({{"test": datasets.Dataset.from_list(rows)}})


def ends_in_e(doc, results):
    return {{"exact_match": float(results[0][-1:] == "e"), "length": len(results[0])}}
"""

YAML = {
    "adhoc_choice": """
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc}
  - {metric: acc_norm}
  - {metric: mcc}
""",
    "adhoc_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
""",
    "adhoc_last": """
output_type: loglikelihood
doc_to_text: text
doc_to_target: " {{answer}}"
metric_list:
  - {metric: perplexity}
  - {metric: acc}
""",
    "adhoc_answer": """
output_type: generate_until
doc_to_text: text
doc_to_target: answer
process_results: !function loader.ends_in_e
generation_kwargs: {until: ["\\n", " the"], max_gen_toks: 6, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
  - {metric: length, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: first, filter: [{function: regex, regex_pattern: "(\\\\S+)"}, {function: take_first}]}
""",
    "adhoc_nucleus": """
output_type: generate_until
doc_to_text: text
doc_to_target: answer
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: true, temperature: 0.7, top_p: 0.9}
metric_list:
  - {metric: exact_match}
""",
    "adhoc_hub": """
dataset_path: nobody/no-such-data-set
output_type: multiple_choice
doc_to_text: text
""",
}


@pytest.fixture(scope="session")
def adhoc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks, one of every kind."""
    folder = tmp_path_factory.mktemp("adhoc")
    (folder / "loader.py").write_text(LOADER.format(words=WORDS))
    for name, text in YAML.items():
        data = "" if "dataset_path" in text else "custom_dataset: !function loader.load\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}test_split: test\n{text}")
    return folder
