"""Zero-shot prompts and answers: a scripted model for prompts and parsing, tiny random ones for generation."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AddedToken, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fgrpo.baselines.zero_shot import free_answers, write_answers, zero_shot
from fgrpo.config import GrammarConfig, KitError, LMConfig
from fgrpo.data import Example, Splits
from fgrpo.evaluate import greedy
from fgrpo.lm.index_labels import IndexLabels
from fgrpo.lm.pretrained import PretrainedPolicy, load_lm
from fgrpo.policy import Sampling, pad_rows
from fgrpo.prompt import TAGS, Output
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
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", bos_token="<bos>")


class Scripted:
    """A policy that answers each prompt by a function of its text, and keeps the prompts."""

    device = torch.device("cpu")

    def __init__(self, answer: Callable[[str], str], chat_template: str | None, context: int | None, budget: int):
        self.tokenizer, self.answer, self.asked = byte_tokenizer(), answer, []
        self.tokenizer.chat_template = chat_template
        shape = SimpleNamespace(max_position_embeddings=context)
        self.labels = IndexLabels(self.tokenizer, SimpleNamespace(get_text_config=lambda: shape), budget)
        self.model, self.pad, self.end, self.decoding = self, self.labels.pad, self.labels.end, nullcontext
        self.generation_config = SimpleNamespace(eos_token_id=None)

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        assert not options["do_sample"] and bool(attention_mask[:, -1].all())  # greedy, padded on the left
        prompts = [self.tokenizer.decode(i[m.bool()]) for i, m in zip(input_ids, attention_mask, strict=True)]
        self.asked += prompts
        new = self.tokenizer([self.answer(p) + "<eos>" for p in prompts], add_special_tokens=False)["input_ids"]
        return torch.cat((input_ids, pad_rows(new, self.pad)[0]), dim=1)


def ask(
    answer: Callable[[str], str] | str, steps: int, batch: int = 8, chat_template: str | None = None,
    context: int | None = None, budget: int = 40, examples: list[Example] = EXAMPLES,
) -> tuple[list[Output], list[str]]:  # fmt: skip
    policy: Any = Scripted(answer if callable(answer) else lambda _: answer, chat_template, context, budget)
    return free_answers(policy, examples, GRAMMAR, steps, batch), policy.asked


def test_one_step_numbers_from_one_and_shows_texts_never_ids() -> None:
    outputs, asked = ask("<SLATE> 2, 1, 3 </SLATE><RANK> 3, 2 </RANK>", steps=1)
    assert outputs == [Output((1, 0, 2), (2, 1))] * 2
    assert "Query: Which film?" in asked[0] and "- Old One\n- Old Two" in asked[0]
    assert "[1] Ant\n[2] Bee\n[3] Cat\n[4] Dog\n[5] Elk\n" in asked[0]
    assert "key-" not in asked[0] and "at most 4" in asked[0] and "at most 2" in asked[0]
    assert "History" not in asked[1] and asked[1].count("word") == 8 and "end\n" not in asked[1]  # a budget of 40 bytes


def test_a_text_cannot_end_the_prompt() -> None:
    bad, tokenizer = Example("b", "Q?<eos>", (), ("one</RANK><eos>", "two"), frozenset({0})), byte_tokenizer()
    _, asked = ask("", steps=1, examples=[bad])
    assert "Q?<eos>" in asked[0] and "[1] one</RANK><eos>" in asked[0]  # in letters
    labels = IndexLabels(tokenizer, SimpleNamespace(get_text_config=lambda: SimpleNamespace()))
    assert tokenizer.eos_token_id not in labels.ask(bad, [0, 1], "?")


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
    slate = (0, 1) if answer.startswith("<SLATE>1, 2</SLATE>") else ()  # a fault of the ranking leaves the slate
    for output in ask(answer, steps=1)[0]:
        assert output == (Output(slate, (), error) if error else Output((0, 1), (1,)))


def test_the_second_step_sees_the_slate_alone_under_the_same_numbers() -> None:
    def answer(prompt: str) -> str:
        return "I choose <SLATE> 4, 2 </SLATE>" if "Choose a slate" in prompt else "Well, <RANK> 2 </RANK>"

    outputs, asked = ask(answer, steps=2, batch=1)
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
    outputs, asked = ask(lambda prompt: slate if "Choose a slate" in prompt else rank, steps=2)
    kept = (1, 2) if slate.startswith("<SLATE> 2, 3 </SLATE>") else ()
    assert outputs == [Output(kept, (), error)] * 2 and len(asked) == 2 * steps


def test_a_chat_template_is_used_where_there_is_one() -> None:
    template = "{% for m in messages %}<<{{ m.role }}>>{{ m.content }}{% endfor %}<<assistant>>"
    _, asked = ask("", steps=1, chat_template=template)
    assert asked[0].startswith("<<user>>Query:") and asked[0].endswith(
        "<<assistant>>"
    )  # templates have their own start
    assert ask("", steps=1)[1][0].startswith("<bos>Query:")


def tiny_llama(context: int = 4096) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=context, initializer_range=0.3, eos_token_id=256, bos_token_id=None,
        )
    ).eval()  # fmt: skip


def test_padding_does_not_change_the_answers_of_a_random_model(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    policy = PretrainedPolicy.new(LMConfig(model=str(tmp_path)))
    assert not policy.model.training
    examples = [*EXAMPLES, Example("u3", "Which?", (), ("Owl", "Pig"), frozenset({0}))]
    pools = [range(len(e.candidates)) for e in examples]
    alone, together = (write_answers(policy, examples, pools, "Choose.", 1, batch) for batch in (1, 3))
    assert alone == together and len(set(alone)) == 3 and all(alone)
    for steps in (1, 2):
        outputs = zero_shot(
            Splits([], [], EXAMPLES), model=str(tmp_path), grammar=GrammarConfig(2, 1), constrained=False, steps=steps
        )
        assert len(outputs) == 2 and all(o.error for o in outputs)


def test_a_model_that_cannot_be_loaded_or_a_prompt_too_long_is_an_error(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(KitError, match="cannot be loaded"):
        load_lm(str(tmp_path / "absent"))
    with pytest.raises(KitError, match="more than the 300"):
        ask("", steps=1, context=300)
    model, tokenizer = tiny_llama(), byte_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(KitError, match="cannot be loaded"):
        load_lm(str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(KitError, match=r"'gguf' is not installed: pip install 'fgrpo\[baselines\]'"):
        load_lm(str(tmp_path), "weights.gguf")
    for steps, constrained in ((3, False), (2, True)):
        with pytest.raises(KitError, match="must be 1, or 2 with constrained=False"):
            zero_shot(Splits([], [], []), model="", grammar=GRAMMAR, steps=steps, constrained=constrained)


def test_under_the_grammar_it_fills_both_lists_as_the_untrained_policy_does(tmp_path) -> None:
    folder, test = save_model("smollm2", tmp_path / "model: with colon"), family_examples(4)
    outputs = zero_shot(Splits([], [], test), model=str(folder), passage_tokens=12, grammar=GrammarConfig(6, 3))
    policy = policy_of(folder, trained_adapter=False)
    assert outputs == greedy(policy, test, Sampling(GrammarConfig(6, 3, full=True)))
    assert all(not o.error and len(o.slate) == 6 and len(o.rank) == 3 for o in outputs)


@pytest.mark.parametrize("special", [True, False])
def test_tags_that_are_tokens_are_read_in_free_answers(special: bool) -> None:
    """A vocabulary that was extended by the tags: an answer keeps them, and loses other special tokens as before."""
    policy: Any = Scripted(lambda _: "<bos><SLATE> 2, 1 </SLATE><RANK> 2 </RANK>", None, None, 40)
    tags = [AddedToken(tag, special=special, normalized=False) for tag in TAGS]
    policy.tokenizer.add_tokens(tags)
    policy.labels = IndexLabels(policy.tokenizer, LlamaConfig(max_position_embeddings=4096), 40)
    assert set(policy.labels.tag_ids) == set(TAGS)
    assert free_answers(policy, EXAMPLES, GRAMMAR) == [Output((1, 0), (1,))] * 2


def test_an_answer_ends_with_the_models_own_end_tokens(tmp_path: Path) -> None:
    """The end token of the chat template, and those of the model's generation configuration."""
    policy = PretrainedPolicy.new(LMConfig(model=str(save_model("smollm2", tmp_path))))
    named: list[list[int]] = []

    def generate(input_ids: Tensor, eos_token_id: list[int], **_: Any) -> Tensor:
        named.append(eos_token_id)
        new = policy.labels.ids("<SLATE> 1 </SLATE><RANK> 1 </RANK>")
        row = torch.tensor([*new, 7, *policy.labels.ids("and more")])
        return torch.cat((input_ids, row.expand(len(input_ids), -1)), dim=1)

    policy.model.generation_config.eos_token_id = [7, policy.end]
    policy.model.generate = generate  # type: ignore[assignment]
    assert free_answers(policy, family_examples(2), GRAMMAR) == [Output((0,), (0,))] * 2
    assert named == [[policy.end, 7]]
