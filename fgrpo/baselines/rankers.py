"""Rankers of a whole pool: by chance, popularity, words (BM25), sentence embeddings, or a cross-encoder.

A ranker takes the splits of a task and returns the full order of the pool of each test example, best first, as pool
indices; equal scores stay in pool order, except in `popularity`. Its first n are then the slate, its first k the
ranked list.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from random import Random

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from ..config import Config, KitError
from ..data import Example, Splits
from ..lm.encoders import DEVICE, PACKAGED, embed
from ..lm.loading import loading, optional
from ..tasks import family
from ..tasks.games import retrieved
from ..tasks.next_item import counts

T5_TOKENS = 512
"""longest input of monoT5, including its `Relevant:`"""
T5_BATCH = 32


def random_order(splits: Splits) -> list[list[int]]:
    """Each pool in a seeded random order."""
    rng = Random("random baseline")
    return [sorted(range(len(e.candidates)), key=lambda _: rng.random()) for e in splits.test]


def popularity(splits: Splits) -> list[list[int]]:
    """By how often an item is met in training (fgrpo.tasks.next_item.counts); ties in random order."""
    met = counts(splits.train)
    return [by_popularity(e, met) for e in splits.test]


def by_popularity(example: Example, met: Mapping[str, int]) -> list[int]:
    """The pool by falling counts; ties in random order.

    The order of ties depends on the query's id alone: items that were never met must not keep the order of their pool.
    """
    rng = Random(f"popularity {example.id}")
    ties = [rng.random() for _ in example.candidates]
    return sorted(range(len(ties)), key=lambda i: (-met.get(example.candidate_keys[i], 0), ties[i]))


def retriever(splits: Splits, config: Config) -> list[list[int]]:
    """The order of the retriever that made the pool. Raises KitError on a task without one."""
    if family(config.task) != "games":
        raise KitError(f"baseline 'retriever' is for games, whose pools a retriever made, not for {config.task}.")
    return retrieved(config.data, splits.test)


def bm25(splits: Splits) -> list[list[int]]:
    """BM25 (k1 = 1.5, b = 0.75, Lucene's IDF) of the query and history texts against each candidate's text.

    Document frequencies and lengths are those of the distinct candidate texts of the test split, since a pool alone is
    too small for them. English stop words are left out, words are not stemmed. Raises KitError without package bm25s.
    """
    bm25s = optional("bm25s")
    row = {text: n for n, text in enumerate(dict.fromkeys(c for e in splits.test for c in e.candidates))}
    queries = [query_text(e) for e in splits.test]
    documents, questions = (
        bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False) for texts in (list(row), queries)
    )
    if not any(documents):  # bm25s cannot index texts without words
        return [by_score([0.0] * len(e.candidates)) for e in splits.test]
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index(documents, show_progress=False)
    orders = []
    for example, words in zip(splits.test, questions, strict=True):
        scores = index.get_scores_from_ids(index.get_tokens_ids(words))
        orders.append(by_score([scores[row[text]] for text in example.candidates]))
    return orders


def dense(splits: Splits, *, model: str = PACKAGED) -> list[list[int]]:
    """Zero-shot bi-encoder: cosine of the sentence embeddings of query with history and of each candidate.

    `model` is a folder or hub name that sentence-transformers reads. Raises KitError as fgrpo.lm.encoders.embed
    does.
    """
    row = {t: n for n, t in enumerate(dict.fromkeys(t for e in splits.test for t in (query_text(e), *e.candidates)))}
    vectors, orders = embed(list(row), model), []
    for e in splits.test:
        query, pool = vectors[row[query_text(e)]], vectors[[row[c] for c in e.candidates]]  # (D,), (N, D)
        orders.append(by_score((pool @ query).tolist()))
    return orders


def cross_encoder(splits: Splits, *, model: str) -> list[list[int]]:
    """Zero-shot reranker that reads query with history and one candidate together.

    `model` is a folder or hub name of a sequence classifier with one label (sentence-transformers' CrossEncoder) or of
    an encoder-decoder trained as monoT5 (arXiv 2003.06713). Weights from safetensors only. Raises KitError on a
    model that is neither, or that cannot be loaded.
    """
    with loading(model):
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    if any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        score = _classifier
    elif config.is_encoder_decoder:
        score = _monot5
    else:
        raise KitError(f"model {model!r} is not a reranker: it must be a sequence classifier or an encoder-decoder.")
    scores = iter(score([(query_text(e), c) for e in splits.test for c in e.candidates], model))
    return [by_score(list(islice(scores, len(e.candidates)))) for e in splits.test]


def _classifier(pairs: list[tuple[str, str]], model: str) -> list[float]:
    sentence_transformers = optional("sentence_transformers")
    with loading(model):
        reranker = sentence_transformers.CrossEncoder(
            model, device=DEVICE, trust_remote_code=False, model_kwargs={"use_safetensors": True},
            activation_fn=torch.nn.Identity(),  # a sigmoid would round confident scores to ties
        )  # fmt: skip
    if reranker.num_labels != 1:
        raise KitError(f"model {model!r} has {reranker.num_labels} labels: a reranker must have one.")
    return reranker.predict(pairs, show_progress_bar=False, convert_to_tensor=True).tolist()


@torch.inference_mode()
def _monot5(pairs: list[tuple[str, str]], model: str) -> list[float]:
    """Log-odds of `true` against `false` as the first word of the decoder."""
    with loading(model):
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        net = AutoModelForSeq2SeqLM.from_pretrained(model, use_safetensors=True, trust_remote_code=False)
        net = net.to(DEVICE).eval()
    words = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("true", "false")]
    if any(len(word) != 1 for word in words) or words[0] == words[1]:
        raise KitError(f"model {model!r} is not a monoT5: 'true' and 'false' must be one token each.")
    tail = tokenizer("Relevant:")["input_ids"]  # appended after the cut, so that a long document cannot push it out
    heads = tokenizer(
        [f"Query: {query} Document: {document}" for query, document in pairs],
        add_special_tokens=False, truncation=True, max_length=T5_TOKENS - len(tail),
    )["input_ids"]  # fmt: skip
    scores = torch.zeros(len(pairs))
    # by length, so that a batch needs little padding
    for rows in torch.tensor([len(h) for h in heads]).argsort().split(T5_BATCH):
        batch = tokenizer.pad({"input_ids": [heads[i] + tail for i in rows]}, return_tensors="pt").to(net.device)
        start = torch.full((len(rows), 1), net.config.decoder_start_token_id, device=net.device)
        logits = net(**batch, decoder_input_ids=start).logits[:, 0].float().cpu()
        scores[rows] = logits[:, words[0][0]] - logits[:, words[1][0]]
    return scores.tolist()


def query_text(example: Example) -> str:
    """The text that rankers compare candidates with: the query, then the texts of the history."""
    return " ".join((example.query, "; ".join(example.history))).strip()


def by_score(scores: Sequence[float]) -> list[int]:
    """Pool indices by falling score; ties in pool order."""
    return sorted(range(len(scores)), key=lambda i: -scores[i])
