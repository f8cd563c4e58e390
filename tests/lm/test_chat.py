"""Chat templates: where the answer stands, templates that fail or never end, and a date that stays the run's."""

import json
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import transformers

from fgrpo.config import GrammarConfig, KitError, LMConfig
from fgrpo.lm import chat
from fgrpo.lm.chat import Frame, frame_of
from fgrpo.lm.index_labels import IndexLabels
from fgrpo.lm.pretrained import PretrainedPolicy
from fgrpo.runs.fields import config_with
from fgrpo.runs.policies import load_policy, save_policy
from fgrpo.runs.run import Run, read_config
from fgrpo.trainer import fit
from tests.families import examples, save_model, tokenizer_of

CONFIG = transformers.LlamaConfig(max_position_embeddings=4096)
SHOWN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
OPENS = "{% if add_generation_prompt %}[assistant]{% endif %}"
DATED = "{{ strftime_now('%d %b %Y') }}|" + SHOWN + OPENS
FOREVER = 3 * "{% for a in range(99999) %}" + 3 * "{% endfor %}"


def with_template(template: str):
    tokenizer = tokenizer_of("smollm")
    tokenizer.chat_template = template
    return tokenizer


TRL = {  # by name of TRL's file: text between the user's text and the answer, and after the answer
    "cohere2": ("<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
                "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "deepseekv3": ("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),  # its generation prompt opens a block of thoughts
    "gemma3": ("<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>\n"),
    "glm4moe": ("/nothink<|assistant|>\n<think></think>\n", ""),
    "gptoss": ("<|end|><|start|>assistant<|channel|>final<|message|>", "<|return|>"),
    "idefics3": ("<end_of_utterance>\nAssistant: ", "<end_of_utterance>\n"),  # reads text as a list of parts
    "llama3_2": ("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "llava_next": (" [/INST] ", "</s> "),
    "muse_glimmer": ("<|eot|><|start|>assistant to=user<|message|>", "<|eot|>"),
    "nemotron_3_nano": ("<|im_end|>\n<|im_start|>assistant\n<think></think>", "<|im_end|>\n"),
    "phi3": ("<|end|>\n<|assistant|>\n", "<|end|>\n<|im_end|>"),
    "qwen3": ("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_end|>\n"),
    "qwen2_5": ("<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRL)
def test_the_answer_begins_where_the_template_puts_content(name) -> None:
    folder = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    tokenizer = with_template((folder / f"{name}.jinja").read_text(encoding="utf-8"))
    tokenizer.eos_token = "</s>" if name == "llava_next" else tokenizer.eos_token
    assert frame_of(tokenizer)[1:3] == TRL[name]


@pytest.mark.parametrize(
    ("template", "between", "after"),
    [
        (SHOWN + OPENS, "[assistant]", ""),
        (SHOWN.replace("{% endfor", "[end]{% endfor") + OPENS, "[end][assistant]", "[end]"),
        # generation prompts that go on: with a whole block, with an open one, and to another place
        (SHOWN + OPENS.replace("nt]", "nt]<think></think>"), "[assistant]<think></think>", ""),
        (SHOWN + OPENS.replace("nt]", "nt]<think>\n"), "[assistant]", ""),
        (SHOWN + OPENS.replace("nt]", "nt][THINK]"), "[assistant]", ""),
        (SHOWN + OPENS.replace("nt]", "nt]<|channel|>analysis<|message|>"), "[assistant]", ""),
        (SHOWN + "{% if add_generation_prompt %}[assist{% endif %}", "[assistant]", ""),
        # messages that are refused: the fallback is the other of the two texts
        ("{% if messages|length > 1 %}{{ raise_exception('one') }}{% endif %}" + SHOWN + OPENS, "[assistant]", ""),
        ("{% if add_generation_prompt %}{{ raise_exception('no') }}{% endif %}" + SHOWN, "[assistant]", ""),
        (SHOWN.replace("m.content", "m.content | trim") + OPENS, "[assistant]", ""),
        (SHOWN.replace("m.content", "m.content[0].text") + OPENS, "[assistant]", ""),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + SHOWN + OPENS,
         "[assistant]", ""),
    ],
)  # fmt: skip
def test_fallbacks(template, between, after) -> None:
    assert frame_of(with_template(template)) == Frame("[user]", between, after)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('only with tools') }}", r"fails: only with tools\."),
        ("{% for m in messages %}", "fails: Unexpected end of template"),
        ("{{ nothing.of.it }}" + SHOWN, "fails: 'nothing' is undefined"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails: maximum recursion depth"),
        ("{{ [1] | batch(0) | list }}{{ 1 / 0 }}", "fails: division by zero"),
        ("{{ 'a' * 10 ** 10 }}" + SHOWN, "fails: MemoryError"),
        ("{% for a in range(99999) %}{{ 'a' * 100 }}{% endfor %}" + SHOWN, "more than 1,000,000 characters"),
        ("{{ messages.__class__.__mro__ }}" + SHOWN, "fails: "),
        (SHOWN.replace("m.content", "m.content | upper"), "changes or leaves out the text"),
        (SHOWN.replace("{% endfor", "{{ m.content }}{% endfor"), "changes or leaves out the text"),
        ("hello", "changes or leaves out the text"),
        ("{{ ['a', 'b'] | random }}" + SHOWN, "draws at random"),
        ("{{ [['a', 'b']] | map('random') | first }}" + SHOWN, "draws at random"),
        (FOREVER, "takes more than 1 seconds"),
        (SHOWN + "{% if messages|length > 1 %}" + FOREVER + "{% endif %}", "takes more than 1 seconds"),
        ("{{ range(99999) | list | string | length }}{{ 3 ** (3 ** 30) }}", "takes more than 1 seconds|fails: "),
    ],
)
def test_a_template_that_fails_or_never_ends_is_one_sentence(template, reason, monkeypatch) -> None:
    monkeypatch.setattr(chat, "SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(KitError, match=reason) as caught:
        IndexLabels(with_template(template), CONFIG)
    assert "\n" not in str(caught.value) and time.monotonic() - began < 5


def test_named_templates_without_a_default_are_refused() -> None:
    with pytest.raises(KitError, match="no default chat template"):
        frame_of(with_template({"tool_use": SHOWN}))  # type: ignore[arg-type]
    assert frame_of(with_template({"default": SHOWN, "tool_use": ""})).before == "[user]"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "form", ["%Y-%m-%d", "%d %b %Y", "%B %-d, %Y", "%A %j %y %x", "%H:%M:%S", "day %d of %%", "%-m/%-d"]
)
def test_a_pinned_date_is_written_as_the_template_asks(form) -> None:
    template = (
        f"{{% set day = strftime_now('{form}') %}}{{% macro show() %}}{{{{ strftime_now('{form}') }}}}{{% endmacro %}}"
    )
    frame = frame_of(with_template(template + "{{ show() }}{{ day }}" + SHOWN), "2031-02-05")
    expected = date(2031, 2, 5).strftime(form) if "%%" not in form else "day 05 of %%"
    assert frame.before == 2 * expected + "[user]" and frame.date == "2031-02-05"


def test_a_template_that_begins_with_spaces_is_the_same_when_pinned() -> None:
    for template in (" \n  {% if true %}x{% endif %}" + DATED, "\n" + DATED, "  " + DATED):
        plain = with_template(template).apply_chat_template([{"role": "user", "content": "(prompt)"}], tokenize=False)
        assert frame_of(with_template(template)).before == plain.partition("(prompt)")[0]


@pytest.mark.parametrize("kind", ["smollm", "llama"])  # with a template that shows no date, and without a template
def test_a_date_that_nothing_shows_or_that_is_none_is_refused(kind) -> None:
    with pytest.raises(KitError, match="shows no date; leave it out"):
        IndexLabels(tokenizer_of(kind), CONFIG, date="2026-11-26")
    for wrong in ("26.11.2026", "today", "'}}{{ 1/0 }}", "2026-13-01"):
        with pytest.raises(KitError, match="must be written as 2026-11-26"):
            IndexLabels(with_template(DATED), CONFIG, date=wrong)


def test_llamas_own_date_is_used_when_it_is_given() -> None:
    template = (
        "{% if not date_string is defined %}{% set date_string = 'long ago' %}{% endif %}{{ date_string }}" + SHOWN
    )
    assert frame_of(with_template(template)) == Frame("long ago[user]", "[assistant]", "")
    assert frame_of(with_template(template), "2026-01-09").before == "09 Jan 2026[user]"


@pytest.fixture
def dated(tmp_path) -> Path:
    folder = save_model("smollm2", tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(folder)
    return folder


def on(monkeypatch, day: date) -> None:
    class Day(date):
        @classmethod
        def today(cls):
            return day

    monkeypatch.setattr(chat, "date", Day)


def test_tomorrow_the_prompt_is_the_same(dated, tmp_path, monkeypatch) -> None:
    """A run that began today shows its date when it is resumed, evaluated and used as a warm start."""
    config = config_with(
        model=str(dated), slate_size=3, rank_size=2, group=2, queries=2, steps=2, lora_rank=2, passage_tokens=5,
        lr_decay="none",
    )  # fmt: skip
    grammar, (example, *_) = GrammarConfig(3, 2), examples()
    on(monkeypatch, date(2026, 11, 26))
    policy = PretrainedPolicy.new(config.lm)
    before = policy.labels.prompt_ids(example, grammar)
    assert policy.labels.prompt(example).startswith("26 Nov 2026|")
    fit(policy, examples(4), config, Run(tmp_path / "run", config), quiet=True)
    assert read_config(tmp_path / "run").lm.date == "2026-11-26"
    on(monkeypatch, date(2026, 11, 27))
    fresh = PretrainedPolicy.new(config.lm)
    assert fresh.labels.prompt(example).startswith("27 Nov 2026|")
    assert load_policy(tmp_path / "run").labels.prompt_ids(example, grammar) == before
    longer = replace(config, rl=replace(config.rl, steps=3))
    resumed = fit(fresh, examples(4), longer, Run(tmp_path / "run", longer, resume=True), quiet=True)
    assert resumed.labels.prompt_ids(example, grammar) == before
    assert read_config(tmp_path / "run").lm.date == "2026-11-26"
    other = replace(config, lm=replace(config.lm, date="2026-11-27"))
    with pytest.raises(KitError, match=r"lm\.date = '2026-11-27', it began with '2026-11-26'"):
        Run(tmp_path / "run", other, resume=True)
    given = PretrainedPolicy.new(replace(config.lm, date="2020-01-02"))
    save_policy(given, tmp_path / "given")
    assert json.loads((tmp_path / "given/policy.json").read_text())["date"] == "2020-01-02"
    assert load_policy(tmp_path / "given", lm=LMConfig()).labels.prompt(example).startswith("02 Jan 2020|")
