"""A language model as it comes, asked for slate and ranking in the output language: in one step, or in two.

In one step it writes `<SLATE> 7, 12, 3 </SLATE><RANK> 12, 3 </RANK>`. In two steps it first writes the slate; then it
sees only those candidates, under the same numbers, and writes the ranking. Candidates are numbered from 1.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch

from ..config import GrammarConfig, KitError
from ..data import Example
from ..lm.index_labels import ANSWER, FORM, RANK_FORM, SLATE_FORM, chat, choose, prompt_lines, rank, task
from ..prompt import Output, parse

WORDS = 100
"""words of a text that the model is shown"""
LABEL_TOKENS, SPARE_TOKENS = 6, 64
"""what an answer may take: tokens for each number and its comma, and tokens for tags and a short preamble"""


def zero_shot(
    splits_test: Sequence[Example], model: Any, tokenizer: Any, grammar: GrammarConfig, two_steps: bool, batch: int = 8
) -> list[Output]:
    """Greedy answers of the model, one Output per example; one that is ill-formed has an error and two empty lists.

    Text before the tags is tolerated, text after them is not. A model with a chat template is asked through it. In two
    steps an ill-formed slate ends the example. Raises KitError if a prompt is longer than the model's context.
    """
    if not two_steps:
        prompts = [_prompt(e, range(len(e.candidates)), task(grammar)) for e in splits_test]
        answers = _answers(prompts, model, tokenizer, grammar.slate_size + grammar.rank_size, batch)
        return [parse(_tagged(a, "SLATE"), _labels(e), grammar) for a, e in zip(answers, splits_test, strict=True)]

    ask = f"{choose(grammar)} {FORM}\n{SLATE_FORM}"
    prompts = [_prompt(e, range(len(e.candidates)), ask) for e in splits_test]
    answers = _answers(prompts, model, tokenizer, grammar.slate_size, batch)
    slates = [_tagged(a, "SLATE") for a in answers]
    outputs = [_slate(s, _labels(e), grammar) for s, e in zip(slates, splits_test, strict=True)]
    going = [i for i, output in enumerate(outputs) if not output.error]
    ask = f"{rank(grammar)} {FORM}\n{RANK_FORM}"
    prompts = [_prompt(splits_test[i], outputs[i].slate, ask) for i in going]
    for i, answer in zip(going, _answers(prompts, model, tokenizer, grammar.rank_size, batch), strict=True):
        outputs[i] = parse(slates[i] + _tagged(answer, "RANK"), _labels(splits_test[i]), grammar)
    return outputs


def _prompt(example: Example, shown: Sequence[int], ask: str) -> str:
    lines = prompt_lines(example, shown, ask)
    return "\n".join(f"{lead} {' '.join(text.split()[:WORDS])}".rstrip() for lead, text in lines)


def _labels(example: Example) -> dict[str, int]:
    return {str(i + 1): i for i in range(len(example.candidates))}


def _tagged(answer: str, tag: str) -> str:
    """The answer from its first opening tag on; whole, and so malformed, without one."""
    return answer[max(0, answer.find(f"<{tag}>")) :].strip()


def _slate(text: str, labels: dict[str, int], grammar: GrammarConfig) -> Output:
    """Parse a slate alone, by the one parser: with its own first label as the ranking."""
    first = re.match(r"<SLATE>[\s,]*([^\s,<>]*)", text)
    return parse(f"{text}<RANK> {first[1] if first else ''} </RANK>", labels, grammar)


@torch.inference_mode()
def _answers(prompts: list[str], model: Any, tokenizer: Any, labels: int, batch: int) -> list[str]:
    """What the model writes after each prompt, greedily, with room for `labels` numbers."""
    in_chat = bool(getattr(tokenizer, "chat_template", None))
    prompts = [chat(tokenizer, p) for p in prompts] if in_chat else [f"{p}{ANSWER}" for p in prompts]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    room, answers = labels * LABEL_TOKENS + SPARE_TOKENS, []
    context = getattr(model.config, "max_position_embeddings", None)
    for start in range(0, len(prompts), batch):
        some = tokenizer(
            prompts[start : start + batch], padding=True, padding_side="left", add_special_tokens=not in_chat,
            return_tensors="pt",
        )  # fmt: skip
        ids, mask = some["input_ids"].to(model.device), some["attention_mask"].to(model.device)
        if context and ids.shape[1] + room > context:
            raise KitError(
                f"a prompt of {ids.shape[1]} tokens and {room} for the answer are more than the {context} that the "
                "model reads: use a smaller pool, or a model with a longer context."
            )
        written = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=room, do_sample=False, num_beams=1,
            temperature=None, top_p=None, top_k=None, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        answers += tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
    return answers
