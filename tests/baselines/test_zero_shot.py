"""Zero-shot prompts and answers: a scripted model for what is asked and read, tiny random ones for generation."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fgrpo.baselines.rankers import BASELINES
from fgrpo.baselines.zero_shot import _answers, zero_shot
from fgrpo.config import GrammarConfig, KitError
from fgrpo.data import Example, Splits
from fgrpo.evaluate import greedy
from fgrpo.lm.pretrained import load_lm
from fgrpo.policy import Sampling
from fgrpo.prompt import ERRORS, Output
from tests.families import examples as family_examples
from tests.families import policy_of, save_model

GRAMMAR = GrammarConfig(slate_size=4, rank_size=2)
EXAMPLES = [
    Example("u1", "Which film?", ("Old One", "Old Two"), ("Ant", "Bee", "Cat", "Dog", "Elk"), frozenset({1}),
            ("key-1", "key-2"), tuple(f"key-{n}" for n in range(3, 8))),
    Example("u2", "Which song?", (), ("Fox", "Gnu", "word " * 150 + "end", "Hen"), frozenset({0})),
]  # fmt: skip


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte after a first `<bos>`, so that any text survives."""
    vocabulary = {c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words = Tokenizer(models.BPE(vocabulary, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(["<eos>", "<bos>"])
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 257)])
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")


class Scripted:
    """Answers each prompt by a function of its text, and keeps what it was asked."""

    device = torch.device("cpu")
    config = SimpleNamespace(max_position_embeddings=None)

    def __init__(self, tokenizer: Any, answer: Callable[[str], str]):
        self.tokenizer, self.answer, self.asked = tokenizer, answer, []

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        assert not options["do_sample"] and bool(attention_mask[:, -1].all())  # greedy, padded on the left
        prompts = [self.tokenizer.decode(i[m.bool()]) for i, m in zip(input_ids, attention_mask, strict=True)]
        self.asked += prompts
        new = self.tokenizer([self.answer(p) + "<eos>" for p in prompts], padding=True, return_tensors="pt")
        return torch.cat((input_ids, new["input_ids"]), dim=1)


def ask(answer: Callable[[str], str] | str, two_steps: bool, **options: Any) -> tuple[list[Output], list[str]]:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = options.pop("chat_template", None)
    model = Scripted(tokenizer, answer if callable(answer) else lambda _: answer)
    return zero_shot(EXAMPLES, model, tokenizer, GRAMMAR, two_steps, **options), model.asked


def test_one_step_numbers_from_one_and_shows_texts_never_ids() -> None:
    outputs, asked = ask("<SLATE> 2, 1, 3 </SLATE><RANK> 3, 2 </RANK>", two_steps=False)
    assert outputs == [Output((1, 0, 2), (2, 1))] * 2
    assert "Query: Which film?" in asked[0] and "- Old One\n- Old Two" in asked[0]
    assert "[1] Ant\n[2] Bee\n[3] Cat\n[4] Dog\n[5] Elk\n" in asked[0]
    assert "key-" not in asked[0] and "at most 4" in asked[0] and "at most 2" in asked[0]
    assert "History" not in asked[1] and asked[1].count("word") == 100 and "end\n" not in asked[1]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("Sure, here: <SLATE>1 2</SLATE>\n<RANK>2</RANK>", ""),
        ("<SLATE>1, 2</SLATE><RANK>2</RANK> as you asked", "malformed"),
        ("<SLATE>1, 2</SLATE> so <RANK>2</RANK>", "malformed"),
        ("<SLATE>1, 2</SLATE>", "malformed"),
        ("1, 2", "malformed"),
        ("<SLATE>0, 2</SLATE><RANK>2</RANK>", "foreign"),
        ("<SLATE>Ant, 2</SLATE><RANK>2</RANK>", "foreign"),
        ("<SLATE>1, 1</SLATE><RANK>1</RANK>", "duplicate"),
        ("<SLATE>1, 2, 3, 4, 4</SLATE><RANK>1</RANK>", "too_long"),
        ("<SLATE>1, 2</SLATE><RANK>3</RANK>", "out_of_slate"),
    ],
)
def test_only_a_preamble_is_forgiven(answer: str, error: str) -> None:
    for output in ask(answer, two_steps=False)[0]:
        assert output == (Output(error=error) if error else Output((0, 1), (1,)))


def test_the_second_step_sees_the_slate_alone_under_the_same_numbers() -> None:
    def answer(prompt: str) -> str:
        return "I choose <SLATE> 4, 2 </SLATE>" if "Choose a slate" in prompt else "Well, <RANK> 2 </RANK>"

    outputs, asked = ask(answer, two_steps=True, batch=1)
    assert outputs == [Output((3, 1), (1,))] * 2 and len(asked) == 4
    assert "<RANK>" not in asked[0] and "[5] Elk" in asked[0]
    assert "[4] Dog\n[2] Bee\n" in asked[2] and "- Old One" in asked[2] and "at most 2" in asked[2]
    assert "[1]" not in asked[2] and "Ant" not in asked[2] and "<SLATE>" not in asked[2]


@pytest.mark.parametrize(
    ("slate", "rank", "error", "steps"),
    [
        ("<SLATE> 2, 9 </SLATE>", "", "foreign", 1), ("<SLATE> </SLATE>", "", "malformed", 1),
        ("2, 3", "", "malformed", 1), ("<SLATE> 2, 3 </SLATE> and more", "", "malformed", 1),
        ("<SLATE> 1, 2, 3, 4, 1 </SLATE>", "", "too_long", 1), ("<SLATE> 2, 2 </SLATE>", "", "duplicate", 1),
        ("<SLATE> 2, 3 </SLATE>", "<RANK> 1 </RANK>", "out_of_slate", 2),
        ("<SLATE> 2, 3 </SLATE>", "2", "malformed", 2),
    ],
)  # fmt: skip
def test_two_steps_end_with_the_first_error(slate: str, rank: str, error: str, steps: int) -> None:
    outputs, asked = ask(lambda prompt: slate if "Choose a slate" in prompt else rank, two_steps=True)
    assert outputs == [Output(error=error)] * 2 and len(asked) == 2 * steps


def test_a_chat_template_is_used_where_there_is_one() -> None:
    template = "{% for m in messages %}<<{{ m.role }}>>{{ m.content }}{% endfor %}<<assistant>>"
    _, asked = ask("", two_steps=False, chat_template=template)
    assert asked[0].startswith("<<user>>Query:") and asked[0].endswith("<<assistant>>")  # templates begin by themselves
    assert ask("", two_steps=False)[1][0].startswith("<bos>Query:")


def tiny_llama(context: int = 4096) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=context, initializer_range=0.3, eos_token_id=256, bos_token_id=None,
        )
    ).eval()  # fmt: skip


def test_a_random_model_is_loaded_and_padding_does_not_change_its_answers(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_lm(str(tmp_path))
    assert not model.training
    prompts = ["a", "some words that are longer", "middling"]
    alone, together = (_answers(prompts, model, tokenizer, 1, batch) for batch in (1, 3))
    assert alone == together and len(set(alone)) == 3 and all(alone)
    for two_steps in (False, True):
        outputs = zero_shot(EXAMPLES, model, tokenizer, GrammarConfig(2, 1), two_steps)
        assert len(outputs) == 2 and all(o.error in ERRORS and o.error for o in outputs)


def test_what_cannot_be_loaded_or_read_is_said(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(KitError, match="cannot be loaded"):
        load_lm(str(tmp_path / "absent"))
    model, tokenizer = tiny_llama(context=300), byte_tokenizer()
    with pytest.raises(KitError, match="more than the 300"):
        zero_shot(EXAMPLES, model, tokenizer, GRAMMAR, two_steps=False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(KitError, match="cannot be loaded"):
        load_lm(str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(KitError, match=r"'gguf' is not installed: pip install 'fgrpo\[baselines\]'"):
        load_lm(str(tmp_path), "weights.gguf")


def test_under_the_grammar_it_fills_both_lists_as_the_untrained_policy_does(tmp_path) -> None:
    folder, test = save_model("smollm2", tmp_path / "model"), family_examples(4)
    orders = BASELINES["zero_shot"](
        Splits([], [], test), model=str(folder), passage_tokens=12, slate_size=6, rank_size=3
    )
    policy = policy_of(folder, trained_adapter=False)
    for order, output, e in zip(
        orders, greedy(policy, test, Sampling(GrammarConfig(6, 3, full=True))), test, strict=True
    ):
        assert order[:3] == list(output.rank) and set(order[:6]) == set(output.slate) and len(output.slate) == 6
        assert sorted(order) == list(range(len(e.candidates)))
    with pytest.raises(KitError, match="zero_shot:model=NAME"):
        BASELINES["zero_shot"](Splits([], [], test))
