"""A pretrained language model without any training: under the grammar, or writing freely in one step or two.

Prompts, labels and constrained decoding are those of the policies that are trained from the same model (fgrpo.lm).
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..config import GrammarConfig, KitError, LMConfig
from ..data import Example, Splits
from ..evaluate import greedy
from ..lm.index_labels import ask_both, ask_ranking, ask_slate
from ..lm.pretrained import PretrainedPolicy
from ..policy import Sampling, pad_rows, slices
from ..prompt import Output, parse

LABEL_TOKENS, SPARE_TOKENS = 6, 64
"""room for a free answer: tokens for each number and its comma, and tokens for tags and a short preamble"""


def zero_shot(
    splits: Splits, *, model: str, grammar: GrammarConfig, gguf_file: str = "", dtype: str = "float32",
    passage_tokens: int = 200, constrained: bool = True, steps: int = 1, date: str = "",
) -> list[Output]:  # fmt: skip
    """Greedy lists of an untuned model for the test split. `model` is a folder or hub name, or has `gguf_file` in it.

    `constrained`: decoded under the grammar and made to fill both lists. Otherwise it answers freely, in one or two
    `steps` (`free_answers`). `date`: shown by chat templates that show one (default: today's). Raises KitError if the
    model cannot be loaded or a prompt is longer than it reads.
    """
    if steps not in (1, 2) or (constrained and steps == 2):
        raise KitError(f"zero_shot: steps {steps} must be 1, or 2 with constrained=False.")
    lm = LMConfig(model=model, gguf_file=gguf_file, dtype=dtype, passage_tokens=passage_tokens, date=date)
    policy = PretrainedPolicy.new(lm)  # its fresh adapter changes nothing
    if constrained:
        return greedy(policy, splits.test, Sampling(replace(grammar, full=True)))
    return free_answers(policy, splits.test, grammar, steps)


def free_answers(
    policy: PretrainedPolicy, examples: Sequence[Example], grammar: GrammarConfig, steps: int = 1, batch: int = 8
) -> list[Output]:
    """Free greedy answers, one Output per example; one that is ill-formed has an error, and its slate if it can be read.

    In one step the model writes `<SLATE> 7, 12, 3 </SLATE><RANK> 12, 3 </RANK>`. In two steps it first writes the
    slate; then it sees only those candidates, under the same numbers, and writes the ranking. An ill-formed slate ends
    the example. Text before the tags is tolerated, text after them is not.
    """
    pools = [range(len(e.candidates)) for e in examples]
    labels = [{label: i for i, label in enumerate(policy.labels.candidates(e))} for e in examples]
    if steps == 1:
        numbers = grammar.slate_size + grammar.rank_size
        answers = write_answers(policy, examples, pools, ask_both(grammar), numbers, batch)
        return [parse(_from_tag(a, "SLATE"), own, grammar) for a, own in zip(answers, labels, strict=True)]

    answers = write_answers(policy, examples, pools, ask_slate(grammar), grammar.slate_size, batch)
    slates = [_from_tag(a, "SLATE") for a in answers]
    outputs = [_parse_slate(s, own, grammar) for s, own in zip(slates, labels, strict=True)]
    good = [i for i, output in enumerate(outputs) if not output.error]
    chosen = [outputs[i].slate for i in good]
    answers = write_answers(policy, [examples[i] for i in good], chosen, ask_ranking(grammar), grammar.rank_size, batch)
    for i, answer in zip(good, answers, strict=True):
        outputs[i] = parse(slates[i] + _from_tag(answer, "RANK"), labels[i], grammar)
    return outputs


@torch.inference_mode()
def write_answers(
    policy: PretrainedPolicy, examples: Sequence[Example], pools: Sequence[Sequence[int]], question: str, numbers: int,
    batch: int,
) -> list[str]:  # fmt: skip
    """The model's greedy answer to each prompt, with room for `numbers` labels. pools: candidates in the prompt."""
    prompts = [policy.labels.ask(e, pool, question) for e, pool in zip(examples, pools, strict=True)]
    room, context, answers = numbers * LABEL_TOKENS + SPARE_TOKENS, policy.labels.context, []
    ends = _ends(policy)
    for some in slices(len(prompts), batch):
        ids, mask = (x.to(policy.device) for x in pad_rows(prompts[some], policy.pad, left=True))  # (B, P)
        if context and ids.shape[1] + room > context:
            raise KitError(
                f"a prompt of {ids.shape[1]} tokens and {room} for the answer are more than the {context} that the "
                "model reads: lower passage_tokens, or use a smaller pool."
            )
        with policy.decoding():
            written = policy.model.generate(
                input_ids=ids, attention_mask=mask.long(), max_new_tokens=room, do_sample=False, num_beams=1,
                temperature=None, top_p=None, top_k=None, pad_token_id=policy.pad, eos_token_id=ends,
            )  # fmt: skip
        answers += [_text(policy, row, ends) for row in written[:, ids.shape[1] :].tolist()]
    return answers


def _ends(policy: PretrainedPolicy) -> list[int]:
    """Tokens that end an answer: that of the chat template, and those that the model names."""
    named = policy.model.generation_config.eos_token_id
    return list(dict.fromkeys([policy.end, *(named if isinstance(named, list) else [named] * (named is not None))]))


def _text(policy: PretrainedPolicy, row: list[int], ends: list[int]) -> str:
    """An answer up to its end, without special tokens, except the tags of a tokenizer that holds them as such."""
    stop = next((n for n, token in enumerate(row) if token in (*ends, policy.pad)), len(row))
    dropped = set(policy.tokenizer.all_special_ids) - set(policy.labels.tag_ids.values())
    return policy.labels.text([i for i in row[:stop] if i not in dropped])


def _from_tag(answer: str, tag: str) -> str:
    """The answer from its first opening tag on; without one the whole answer, which is then malformed."""
    return answer[max(0, answer.find(f"<{tag}>")) :].strip()


def _parse_slate(text: str, labels: dict[str, int], grammar: GrammarConfig) -> Output:
    """Parse a slate alone, by the parser of whole outputs: with the slate's first label as the ranking."""
    first = re.match(r"<SLATE>[\s,]*([^\s,<>]*)", text)
    return parse(f"{text}<RANK> {first[1] if first else ''} </RANK>", labels, grammar)
