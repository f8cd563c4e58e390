"""The lab task: invented films, and viewers with a latent taste."""

import json
import math
from pathlib import Path
from random import Random
from typing import NamedTuple

from ..data import Example, Splits
from .jsonl import to_json

GENRES = {
    "noir": ("Alibi", "Alley", "Ledger", "Gunsel", "Dahlia"),
    "western": ("Mesa", "Stirrup", "Gulch", "Drover", "Canyon"),
    "space": ("Orbit", "Nebula", "Airlock", "Comet", "Rocket"),
    "heist": ("Vault", "Decoy", "Safe", "Getaway", "Forger"),
    "ghost": ("Attic", "Seance", "Manor", "Wraith", "Crypt"),
    "war": ("Trench", "Convoy", "Bunker", "Armada", "Siege"),
    "romance": ("Waltz", "Letter", "Suitor", "Picnic", "Serenade"),
    "fable": ("Fox", "Lantern", "Orchard", "Giant", "Spindle"),
    "sport": ("Relay", "Umpire", "Knockout", "Paddock", "Regatta"),
    "spy": ("Cipher", "Embassy", "Courier", "Dossier", "Mole"),
}
TONES = {
    "bleak": ("Ashen", "Hollow", "Bitter", "Frozen", "Barren"),
    "tender": ("Gentle", "Tender", "Velvet", "Loving", "Quiet"),
    "comic": ("Silly", "Giddy", "Clumsy", "Wacky", "Jolly"),
    "eerie": ("Eerie", "Pale", "Sunken", "Murky", "Veiled"),
    "heroic": ("Bold", "Mighty", "Valiant", "Noble", "Proud"),
    "dreamy": ("Amber", "Lunar", "Misty", "Silver", "Azure"),
}
ERAS = (1950, 1965, 1980, 1995, 2010)
LAB_SIZES = {"train": 4000, "validation": 512, "test": 512}
LAB_QUERY = "Which of these films would this viewer like?"


class Film(NamedTuple):
    """An invented film: the adjective of its title gives the tone away, the noun the genre."""

    title: str
    genre: str
    tone: str
    era: int


def lab_catalogue() -> list[Film]:
    """The 300 films: every genre with every tone, five films each, one per era. No title appears twice."""
    return [
        Film(f"{adjectives[(i + g) % 5]} {nouns[i]}", genre, tone, ERAS[(i + 2 * g + 3 * t) % 5])
        for g, (genre, nouns) in enumerate(GENRES.items())
        for t, (tone, adjectives) in enumerate(TONES.items())
        for i in range(5)
    ]


def build_lab(one_relevant: bool = False, seed: int = 0, pool: int = 20) -> Splits:
    """The lab task: each viewer has a latent taste over genres, tones and eras, which is seen only through 8 films.

    History and relevant films are drawn by taste without replacement (Gumbel top-k). Half of the other candidates are
    hard negatives, drawn from the rest by an eighth of the taste; the other half is drawn uniformly. `one_relevant` puts
    exactly one relevant film in each pool instead of 2 to 4. All draws use `Random.random`, whose stream Python keeps
    stable, so that the files are the same on every machine.
    """
    films = lab_catalogue()
    rng = Random(f"lab-rec {seed}")

    def gumbel() -> float:
        return -math.log(-math.log(max(rng.random(), 1e-300)))

    def draw(scores: dict[int, float], count: int) -> list[int]:
        noisy = {i: score + gumbel() for i, score in scores.items()}
        chosen = sorted(noisy, key=noisy.__getitem__, reverse=True)[:count]
        for i in chosen:
            del scores[i]
        return chosen

    def viewer(name: str) -> Example:
        taste: dict[str | int, float] = {
            **{genre: 3.0 * gumbel() for genre in GENRES},
            **{tone: 2.2 * gumbel() for tone in TONES},
            **{era: 0.8 * gumbel() for era in ERAS},
        }
        left = {i: taste[f.genre] + taste[f.tone] + taste[f.era] for i, f in enumerate(films)}
        history = draw(left, 8)
        relevant = draw(left, 1 if one_relevant else 2 + int(3 * rng.random()))
        left = {i: score / 8 for i, score in left.items()}
        hard = draw(left, (pool - len(relevant)) // 2)
        easy = draw(dict.fromkeys(left, 0.0), pool - len(relevant) - len(hard))
        order = draw(dict.fromkeys(relevant + hard + easy, 0.0), pool)
        titles = tuple(films[i].title for i in order)
        return Example(
            name, LAB_QUERY, tuple(films[i].title for i in history), titles,
            frozenset(order.index(i) for i in relevant),
        )  # fmt: skip

    return Splits(*([viewer(f"{split}-{n}") for n in range(size)] for split, size in LAB_SIZES.items()))


def lab_files(folder: str | Path, one_relevant: bool = False) -> dict[Path, str]:
    """The text of each file of the lab task: the three splits, and the catalogue with its attributes."""
    folder = Path(folder)
    splits = build_lab(one_relevant)._asdict()
    files = {folder / f"{name}.jsonl": "".join(to_json(e) + "\n" for e in rows) for name, rows in splits.items()}
    rows = (json.dumps(film._asdict(), ensure_ascii=False) + "\n" for film in lab_catalogue())
    return {**files, folder / "catalogue.jsonl": "".join(rows)}
