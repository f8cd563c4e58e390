"""Real passages and real films for notebook 08, in words of our own: `python data/transfer/make.py` writes both files.

The facts are common knowledge, checked by hand; the texts are the kit's (Apache-2.0). Every query is written three times,
its pool of 20 in three orders (`id` ends in `-0` to `-2`): the same candidates under other numbers. Pools and orders are
seeded, so that the same files come out, byte for byte.
"""

import sys
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from fgrpo.data import Example  # noqa: E402
from fgrpo.tasks.jsonl import write_jsonl  # noqa: E402
from fgrpo.tasks.reading import shuffled  # noqa: E402

ORDERS, POOL = 3, 20

# question, the two passages that answer it together, two that are near and do not
QUESTIONS = (
    ("On which rivers does the city lie in which Johann Sebastian Bach died?",
     "Johann Sebastian Bach: Composer, born in Eisenach, died in Leipzig.",
     "Leipzig: A city in Saxony where the White Elster and the Pleisse meet.",
     "Eisenach: A town in Thuringia below the Wartburg castle.",
     "George Frideric Handel: Composer, born in Halle, died in London."),
    ("What is the currency of the country in which the Petronas Towers stand?",
     "Petronas Towers: Twin skyscrapers in the capital of Malaysia, finished in 1998.",
     "Malaysia: A country in Southeast Asia that pays in ringgit.",
     "Burj Khalifa: The tallest tower of Dubai, opened in 2010.",
     "Thailand: A kingdom in Southeast Asia that pays in baht."),
    ("In which year did the architect of the Sagrada Familia die?",
     "Sagrada Familia: A church in Barcelona, mostly the work of Antoni Gaudi.",
     "Antoni Gaudi: Catalan architect, killed by a tram in 1926.",
     "Le Corbusier: Swiss-French architect, died in 1965.",
     "Park of Montjuic: A hill with gardens above the port of Barcelona."),
    ("In which mountains does the river rise that flows through Vienna?",
     "Vienna: The capital of Austria, a city on the Danube.",
     "Danube: A river that rises in the Black Forest and ends in the Black Sea.",
     "Rhine: A river that rises in the Swiss Alps and ends in the North Sea.",
     "Graz: The second largest city of Austria, on the Mur."),
    ("Who painted the ceiling of the chapel in which popes are elected?",
     "Conclave: The meeting of cardinals in the Sistine Chapel that elects the pope.",
     "Sistine Chapel: A chapel whose ceiling Michelangelo painted from 1508 to 1512.",
     "Raphael: Painter of the School of Athens, born in Urbino.",
     "Pantheon: A Roman temple with a dome, later a church."),
    ("In which country was the author of One Hundred Years of Solitude born?",
     "One Hundred Years of Solitude: A novel of 1967 by Gabriel Garcia Marquez.",
     "Gabriel Garcia Marquez: Writer, born in Aracataca in Colombia in 1927.",
     "Mario Vargas Llosa: Writer, born in Arequipa in Peru in 1936.",
     "The House of the Spirits: A novel of 1982 by Isabel Allende."),
    ("After which country is the element named that the first winner of two Nobel Prizes found in 1898?",
     "Marie Curie: Physicist and chemist, the first person to win two Nobel Prizes.",
     "Polonium: An element found by Marie and Pierre Curie in 1898, named after Poland.",
     "Germanium: An element found by Clemens Winkler in 1886, named after Germany.",
     "Linus Pauling: Chemist, winner of a prize for chemistry and one for peace."),
    ("On which island was the emperor born who lost the Battle of Waterloo?",
     "Battle of Waterloo: The last defeat of Napoleon, in June 1815.",
     "Napoleon: Emperor of the French, born in Ajaccio on Corsica in 1769.",
     "Duke of Wellington: British general and prime minister, born in Dublin.",
     "Battle of Trafalgar: A battle at sea of 1805, won by Nelson's fleet."),
    ("To which family belongs the language of the country whose capital is Budapest?",
     "Budapest: The capital of Hungary, made one city in 1873.",
     "Hungarian: The language of Hungary, a member of the Uralic family.",
     "Romanian: The language of Romania, a member of the Romance family.",
     "Bratislava: The capital of Slovakia, on the border with Austria."),
    ("Which spacecraft flew past the planet that William Herschel discovered?",
     "William Herschel: Astronomer and musician who discovered Uranus in 1781.",
     "Voyager 2: A spacecraft that flew past Uranus in 1986.",
     "Galileo: A spacecraft that circled Jupiter from 1995 to 2003.",
     "Clyde Tombaugh: Astronomer who discovered Pluto in 1930."),
    ("Which bird does the flag show of the country in which Chichen Itza lies?",
     "Chichen Itza: A ruined Maya city in Yucatan, in the southeast of Mexico.",
     "Flag of Mexico: Green, white and red, with a golden eagle that eats a snake.",
     "Machu Picchu: An Inca town in the mountains of Peru.",
     "Flag of Zambia: Green, with a fish eagle above three stripes."),
    ("Into which sea does the river flow on whose bank the Hermitage stands?",
     "Hermitage: A museum in Saint Petersburg, on the bank of the Neva.",
     "Neva: A short river from Lake Ladoga to the Gulf of Finland, in the Baltic Sea.",
     "Volga: A long river that ends in the Caspian Sea.",
     "Tretyakov Gallery: A museum of Russian art in Moscow."),
)  # fmt: skip

# three films that a viewer has seen, then two by the same director
FILMS = (
    ("My Neighbor Totoro (1988)", "Kiki's Delivery Service (1989)", "Princess Mononoke (1997)",
     "Spirited Away (2001)", "Howl's Moving Castle (2004)"),
    ("Rear Window (1954)", "Vertigo (1958)", "North by Northwest (1959)", "Psycho (1960)", "The Birds (1963)"),
    ("2001: A Space Odyssey (1968)", "A Clockwork Orange (1971)", "Barry Lyndon (1975)",
     "The Shining (1980)", "Full Metal Jacket (1987)"),
    ("Reservoir Dogs (1992)", "Pulp Fiction (1994)", "Jackie Brown (1997)",
     "Kill Bill: Vol. 1 (2003)", "Inglourious Basterds (2009)"),
    ("Rashomon (1950)", "Ikiru (1952)", "Seven Samurai (1954)", "Throne of Blood (1957)", "Yojimbo (1961)"),
    ("Jaws (1975)", "Close Encounters of the Third Kind (1977)", "Raiders of the Lost Ark (1981)",
     "E.T. the Extra-Terrestrial (1982)", "Jurassic Park (1993)"),
    ("Alien (1979)", "Blade Runner (1982)", "Thelma & Louise (1991)", "Gladiator (2000)", "The Martian (2015)"),
    ("Memento (2000)", "Batman Begins (2005)", "The Dark Knight (2008)", "Inception (2010)", "Interstellar (2014)"),
    ("Blood Simple (1984)", "Raising Arizona (1987)", "Fargo (1996)", "The Big Lebowski (1998)",
     "No Country for Old Men (2007)"),
    ("Women on the Verge of a Nervous Breakdown (1988)", "All About My Mother (1999)", "Talk to Her (2002)",
     "Volver (2006)", "The Skin I Live In (2011)"),
    ("Double Indemnity (1944)", "Sunset Boulevard (1950)", "Stalag 17 (1953)", "Some Like It Hot (1959)",
     "The Apartment (1960)"),
    ("A Fistful of Dollars (1964)", "For a Few Dollars More (1965)", "The Good, the Bad and the Ugly (1966)",
     "Once Upon a Time in the West (1968)", "Once Upon a Time in America (1984)"),
)  # fmt: skip
FILM_QUERY = "Which of these films are by the director of the films in the history?"


def orders(
    name: str, query: str, history: tuple[str, ...], relevant: tuple[str, ...], others: list[str],
    near: tuple[str, ...] = (),
) -> list[Example]:  # fmt: skip
    """One query with its pool in several orders: the relevant and near candidates, filled up with some of `others`."""
    rng = Random(name)
    pool = [*relevant, *near, *shuffled(others, rng)[: POOL - len(relevant) - len(near)]]
    made = []
    for order in range(ORDERS):
        pool = shuffled(pool, rng)
        found = frozenset(pool.index(text) for text in relevant)
        made.append(Example(f"{name}-{order}", query, history, tuple(pool), found))
    return made


def questions() -> list[Example]:
    """Two passages of twenty answer a question together."""
    made = []
    for n, (query, *texts) in enumerate(QUESTIONS):
        others = [text for m, (_, *rest) in enumerate(QUESTIONS) for text in rest if m != n]
        made += orders(f"question-{n + 1}", query, (), tuple(texts[:2]), others, tuple(texts[2:]))
    return made


def films() -> list[Example]:
    """Two films of twenty are by the director of the three in the history."""
    made = []
    for n, titles in enumerate(FILMS):
        others = [title for m, rest in enumerate(FILMS) for title in rest[3:] if m != n]
        made += orders(f"films-{n + 1}", FILM_QUERY, titles[:3], titles[3:], others)
    return made


if __name__ == "__main__":
    write_jsonl(HERE / "questions.jsonl", questions())
    write_jsonl(HERE / "films.jsonl", films())
