"""The first minute: what is seen, what the two credit methods say of it, where to go next, and what the words mean."""

from markupsafe import Markup

from fgrpo.credit import CREDITS
from fgrpo.runs.trace import Group

from .markup import join, number, signed, tag
from .measures import PHASE_NAMES, GroupCredit, QueryRow

INTRO = (
    "Given a query and a pool of films, a language model wrote a subset, the <strong>slate</strong>, and then an order of "
    "the best, the <strong>ranking</strong>. Training makes green tokens more likely and purple ones less; which they are "
    "depends on the credit method."
)
NEXT = (
    ("The opposite mistake: a bad ranking is praised, since its slate is good",
     {"run": "lab-rec-fgrpo", "query": "test-3", "rollout": "1", "credit": "fgrpo", "against": "grpo",
      "colour": "advantage"}),
    ("All rollouts of this query: what each is compared with", {"tab": "group"}),
    ("Where do the two methods disagree most? All queries", {"tab": "queries", "credit": "fgrpo", "against": "grpo"}),
    ("Move films yourself, and see rewards and credit follow", {"tab": "try"}),
    ("Take one step of training: does the good slate become more likely?", {"tab": "live"}),
)  # fmt: skip
"""five steps from the first view on: what a button says, and the controls that it sets"""
WORDS = {
    "pool": "the candidates of one query, here 20 films; a star marks the relevant ones.",
    "slate": "the first phase of an answer: the subset of the pool that the model chooses.",
    "rank": "the second phase: an order of the best candidates of its own slate.",
    "rollout": "one answer of the model. Sampled rollouts are drawn at random and train it; the greedy one takes the most "
    "probable token each time.",
    "group": "the sampled rollouts of one query. Each is compared with the others, not with other queries.",
    "reward": "how good an answer is: the slate's is the share of relevant candidates in it (recall), the ranking's is "
    "NDCG, which counts relevant candidates more the further up they are.",
    "advantage": "by how much a reward is above the mean of its group. Training makes tokens with a positive one more "
    "likely, and the others less.",
    "flips": "tokens that one credit method praises and the other blames.",
    "slate miss, rank drop": "a relevant candidate is not in the slate; or it is, and is not ranked high enough.",
    "log-prob, entropy": "how probable a token was (0: certain), and how undecided the model was there, both in nats.",
}


def intro() -> Markup:
    """Two sentences on what is seen."""
    return tag('<p class="intro">{}</p>', Markup(INTRO))


def reading(group: Group, rollout: int, one: GroupCredit, other: GroupCredit) -> Markup:
    """What the two methods say of this rollout's phases, in words."""
    rewards = {"slate": one.rewards.slate[0], "rank": one.rewards.rank[0]}
    said, signs = [], []
    for phase, code in PHASE_NAMES.items():
        own, mean = float(rewards[phase][rollout]), float(rewards[phase].mean())
        level = "equal to" if abs(own - mean) < 5e-4 else "above" if own > mean else "below"
        said.append(f"its {phase} reward is {number(own, '.2f')}, {level} the mean of the group, {number(mean, '.2f')}")
        low, high = (c.of_phase(group, rollout, code) for c in (other, one))
        if one.method != other.method and sum(low) * sum(high) < 0:
            verbs = ("praises", "blames") if sum(low) > 0 else ("blames", "praises")
            signs.append(
                f"{other.method} {verbs[0]} its {phase} tokens ({signed(sum(low) / 2)}), {one.method} {verbs[1]} them "
                f"({signed(sum(high) / 2)})"
            )
    if one.method == other.method:
        signs.append("choose two credit methods to compare them")
    text = "; ".join(signs) or f"{other.method} and {one.method} praise and blame the same phases here"
    return tag('<p class="reading"><strong>Rollout {}:</strong> {}. <strong>{}.</strong></p>', rollout + 1,
               "; ".join(said), text[0].upper() + text[1:] if text.startswith("choose") else text)  # fmt: skip


def next_steps() -> Markup:
    """Five buttons that set the controls."""
    buttons = join(
        tag('<li><button type="button" data-go="1" {}>{}</button></li>',
            Markup(" ").join(tag('data-{}="{}"', name, value) for name, value in controls.items()), words)
        for words, controls in NEXT
    )  # fmt: skip
    return tag('<h2>Next</h2><ol class="next">{}</ol>', buttons)


def glossary(*methods: str) -> Markup:
    """Every term in a sentence, the chosen credit methods first."""
    first = [*dict.fromkeys(methods), *(m for m in CREDITS if m not in methods)]
    terms = [*WORDS.items(), *((m, credit_words(m)) for m in first)]
    rows = join(tag("<dt>{}</dt><dd>{}</dd>", word, words) for word, words in terms)
    return tag('<details class="words"><summary>What the words mean</summary><dl>{}</dl></details>', rows)


def credit_words(method: str) -> str:
    """What a credit method does: the first sentence of its docstring."""
    return " ".join((CREDITS[method].__doc__ or "").split("\n\n")[0].split())


def most_flipped(rows: list[QueryRow]) -> list[QueryRow]:
    """Queries with the most flips first, those without rollouts last."""
    return sorted(rows, key=lambda row: -1 if row.flips is None else row.flips, reverse=True)
