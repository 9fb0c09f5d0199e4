"""Portuguese sentences for the embedded voice, drawn from a grammar; whole words are held out of those to train on."""

import functools
import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from demo import lexicon
from demo.lexicon import agree, conjugate, first_person, gerund, plural
from speech.portuguese import cardinal

LENGTHS = range(14, 66)  # characters
HELD_OUT = 0.09  # the share of the words that no training sentence has


def is_held_out(word: str) -> bool:
    """Whether a noun, adjective, verb or name, by its form in the lexicon, is kept for the unseen sentences.

    Never a name such as Thayssa, Nicolly or Sarah: how it is written can't be heard.
    """
    if re.search("[kwy]|ph|th|h$|(?![rs])(.)\\1", word.lower()):
        return False
    return int(hashlib.sha256(word.encode()).hexdigest()[:8], 16) / 16**8 < HELD_OUT


@dataclass(frozen=True)
class Phrase:
    """Some words that act as one noun."""

    text: str
    gender: str = "m"
    many: bool = False

    @property
    def article(self) -> str:
        return ("o" if self.gender == "m" else "a") + "s" * self.many


@dataclass(frozen=True)
class Words:
    """Draws words; a share `unseen` of the draws takes held-out words, the others take none."""

    rng: random.Random
    names: dict[str, list[str]]  # m, f, last
    unseen: float = 0.0

    def draw(self, known: list[str]) -> str:
        rare = self.rng.random() < self.unseen
        fitting = [word for word in known if is_held_out(word) == rare]
        return self.rng.choice(fitting or [word for word in known if not is_held_out(word)])

    def one_of(self, *texts: str) -> str:
        return self.rng.choice(texts)

    def noun(self, kind: str, many: bool = False) -> Phrase:
        gender = self.rng.choice("mf")
        word = self.draw((lexicon.MASCULINE if gender == "m" else lexicon.FEMININE)[kind].split())
        return Phrase(plural(word) if many else word, gender, many)

    def verb(self, kind: str) -> str:
        return self.draw(lexicon.VERBS[kind].split())

    def adjective(self, kind: str, of: Phrase) -> str:
        return agree(self.draw(lexicon.ADJECTIVES[kind].split()), of.gender, of.many)

    def described(self, kind: str, many: bool = False, chance: float = 0.5) -> Phrase:
        noun = self.noun(kind, many)
        if self.rng.random() < chance:
            return replace(noun, text=f"{noun.text} {self.adjective(kind, noun)}")
        return noun

    def person(self) -> Phrase:
        """A name, or somebody with an article."""
        if self.rng.random() < 0.4:
            return self.name()
        noun = self.described("people", self.rng.random() < 0.3, 0.3)
        start = self.one_of(*[noun.article] * 3, self.owner(noun), self.demonstrative(noun))
        return replace(noun, text=f"{start} {noun.text}")

    def name(self) -> Phrase:
        gender = self.rng.choice("mf")
        last = f" {self.draw(self.names['last'])}" if self.rng.random() < 0.25 else ""
        return Phrase(self.draw(self.names[gender]) + last, gender)

    def owner(self, noun: Phrase) -> str:
        word = self.one_of("meu", "seu", "nosso") if noun.gender == "m" else self.one_of("minha", "sua", "nossa")
        return word + "s" * noun.many

    def demonstrative(self, noun: Phrase) -> str:
        word = self.one_of("este", "aquele") if noun.gender == "m" else self.one_of("esta", "aquela")
        return word + "s" * noun.many

    def thing(self, kind: str) -> Phrase:
        """Something with an article, a number or none: what a verb of that kind takes."""
        if kind == "portions":
            noun = self.described(kind, chance=0.4)
            start = self.one_of("", noun.article, self.one_of("muito", "pouco") if noun.gender == "m" else "muita")
            return replace(noun, text=f"{start} {noun.text}".strip())
        many = self.rng.random() < 0.45
        noun = self.described(kind, many)
        if not many:
            start = self.one_of(noun.article, "um" if noun.gender == "m" else "uma", self.owner(noun))
        else:
            some = "alguns" if noun.gender == "m" else "algumas"
            start = self.one_of(noun.article, cardinal(self.rng.randint(2, 40), noun.gender), some, self.owner(noun))
        return replace(noun, text=f"{start} {noun.text}")

    def place(self) -> Phrase:
        return self.described("places", chance=0.35)

    def at(self) -> str:
        """Where: in a place, or in a city."""
        if self.rng.random() < 0.3:
            return f"em {self.city()}"
        place = self.place()
        return f"n{place.article} {place.text}"

    def city(self) -> str:
        return self.draw(lexicon.CITIES).replace("_", " ")

    def when(self) -> str:
        article, day = self.rng.choice(lexicon.WEEKDAYS)
        return self.one_of(
            "ontem",
            "hoje cedo",
            "anteontem",
            "de manhã",
            "à tarde",
            "à noite",
            "de madrugada",
            "no fim do mês",
            f"n{article} {day}",
            f"em {self.rng.choice(lexicon.MONTHS)}",
            "no ano passado",
            "na semana passada",
            f"às {self.hour()}",
        )

    def hour(self) -> str:
        return cardinal(self.rng.randint(2, 12), "f") + self.one_of("", " e meia", " e quinze", " horas", " e dez")


def join(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " e " + parts[-1]


def contract(text: str) -> str:
    """`de o` to `do`, `a a` to `à`, and the like."""
    text = re.sub(r"\b([Dd])e (o|a|os|as|este|esta|aquele|aquela|estes|estas|aqueles|aquelas)\b", r"\1\2", text)
    text = re.sub(r"\bem (o|a|os|as|este|esta|aquele|aquela|estes|estas|aqueles|aquelas)\b", r"n\1", text)
    text = re.sub(r"\bpor (o|a|os|as)\b", r"pel\1", text)
    text = re.sub(r"\ba (os?)\b", r"a\1", text)
    return re.sub(r"\ba a(s?)\b", r"à\1", text)


# --- the sentences: each function draws one of its kind

OBJECT_KINDS = ("objects", "objects", "objects", "foods", "portions", "people", "animals", "clothes")


def did_something(words: Words) -> str:
    kind, who, tense = words.one_of(*OBJECT_KINDS), words.person(), words.one_of("past", "past", "present", "imperfect")
    what = words.person() if kind == "people" else words.thing(kind)
    tail = words.one_of("", "", words.at(), words.when() if tense == "past" else words.one_of(*lexicon.MANNERS))
    return f"{who.text} {conjugate(words.verb(kind), tense, who.many)} {what.text} {tail}"


def was_there(words: Words) -> str:
    who = words.person()
    verb = conjugate(words.verb("alone"), words.one_of("past", "present", "imperfect"), who.many)
    return f"{who.text} {verb} {words.one_of(words.at(), words.one_of(*lexicon.MANNERS))}"


def animal(words: Words) -> str:
    many = words.rng.random() < 0.4
    who = words.described("animals", many)
    verb = conjugate(words.verb("sounds"), words.one_of(*lexicon.TENSES), many)
    tail = words.one_of(words.at(), f"perto de {words.person().text}", words.one_of(*lexicon.MANNERS))
    return f"{who.article} {who.text} {verb} {tail}"


def is_so(words: Words) -> str:
    kind = words.one_of("people", "objects", "foods", "portions", "animals", "clothes", "places")
    many = kind != "portions" and words.rng.random() < 0.4
    noun = words.noun(kind, many)
    verb = words.one_of(*(("são", "eram", "estão", "parecem", "ficaram") if many else ("é", "era", "está", "parece")))
    how = words.one_of("", "muito ", "bem ", "tão ", "mais ou menos ")
    start = words.one_of(noun.article, words.owner(noun), words.demonstrative(noun))
    first, second = words.adjective(kind, noun), words.adjective(kind, noun)
    both = words.one_of("", f" e {second}" if second != first else "")
    return f"{start} {noun.text} {verb} {how}{first}{both}"


def more_than(words: Words) -> str:
    kind = words.one_of("people", "objects", "places", "animals")
    one, other = words.noun(kind), words.noun(kind)
    if one == other:
        return more_than(words)
    return f"{one.article} {one.text} é mais {words.adjective(kind, one)} do que {other.article} {other.text}"


def i_did(words: Words) -> str:
    kind = words.one_of(*OBJECT_KINDS)
    what = words.person() if kind == "people" else words.thing(kind)
    verb = words.verb(kind)
    start = words.one_of("", "eu ", "ontem eu ", f"{words.when()} eu ", "quase ", "eu não ", "nunca ")
    said = words.one_of(first_person(verb), f"estava {gerund(verb)}") if "quase" not in start else first_person(verb)
    return f"{start}{said} {what.text} {words.one_of('', words.at())}"


def will_do(words: Words) -> str:
    kind, who = words.one_of(*OBJECT_KINDS), words.person()
    what = words.person() if kind == "people" else words.thing(kind)
    singular, many = words.rng.choice((("vai", "vão"), ("quer", "querem"), ("pode", "podem"), ("deve", "devem")))
    return f"{who.text} {many if who.many else singular} {words.verb(kind)} {what.text}"


def price(words: Words) -> str:
    kind = words.one_of("objects", "foods", "clothes")
    many = words.rng.random() < 0.3
    noun = words.described(kind, many, 0.4)
    reais = words.rng.choice((words.rng.randint(2, 99), words.rng.randint(100, 999)))
    cents = words.one_of("", f" e {cardinal(words.rng.randint(2, 19) * 5)} centavos")
    verb = words.one_of(*(("custam", "custavam", "custaram") if many else ("custa", "custava", "custou")))
    return f"{noun.article} {noun.text} {verb} {cardinal(reais)} reais{cents}"


def counted(words: Words) -> str:
    kind = words.one_of("objects", "foods", "people", "animals", "clothes")
    noun = words.described(kind, True, 0.3)
    value = words.rng.choice((words.rng.randint(2, 99), words.rng.randint(100, 9999)))
    there = words.one_of("há", "havia", "contamos", "vimos", "faltam" if value > 1 else "falta", "chegaram")
    return f"{there} {cardinal(value, noun.gender)} {noun.text} {words.at()}"


def born(words: Words) -> str:
    year = words.rng.choice((words.rng.randint(1901, 1999), words.rng.randint(2001, 2026)))
    day = words.rng.randint(2, 31)
    date = f"{cardinal(day)} de {words.rng.choice(lexicon.MONTHS)}"
    who = words.name()
    return words.one_of(
        f"{who.text} nasceu em {cardinal(year)}",
        f"{who.text} nasceu em {date}",
        f"a festa foi no dia {date}",
        f"a reunião de {who.text} será às {words.hour()}",
        f"{who.text} tem {cardinal(words.rng.randint(2, 99))} anos",
        f"{who.text} chegou em {words.city()} no dia {date}",
        f"o número de {who.text} é {' '.join(cardinal(words.rng.randint(0, 9)) for _ in range(5))}",
        f"a rua tem {cardinal(words.rng.randint(100, 9999))} metros",
        f"o quarto {cardinal(words.rng.randint(2, 999))} fica à {words.one_of('esquerda', 'direita')}",
    )


def listed(words: Words) -> str:
    kind = words.one_of("objects", "foods", "portions", "clothes", "animals")
    things = [words.noun(kind, kind != "portions" and words.rng.random() < 0.4) for _ in range(words.rng.randint(3, 4))]
    start = words.one_of("comprei", "vimos", "há", "faltam", "temos", "eles pediram", f"{words.name().text} trouxe")
    return f"{start} {join(list(dict.fromkeys(thing.text for thing in things)))}" if len(things) > 2 else ""


def met(words: Words) -> str:
    who, other = words.name(), words.person()
    verb = words.one_of(
        "mora com",
        "viajou com",
        "fala de",
        "gosta de",
        "trabalha para",
        "depende de",
        "se lembra de",
        "casou com",
        "discutiu com",
        "escreveu para",
        "sentiu falta de",
        "riu de",
    )
    return f"{who.text} {verb} {other.text}"


def travelled(words: Words) -> str:
    who = words.person()
    verb = words.rng.choice((("foi", "foram"), ("viajou", "viajaram"), ("voltou", "voltaram"), ("seguiu", "seguiram")))
    how = words.one_of("de carro", "de trem", "de ônibus", "a pé", "de avião", "a cavalo", "de bicicleta", "de barco")
    place = words.place()
    where = words.one_of(f"para {words.city()}", f"para {place.article} {place.text}")
    return f"{who.text} {verb[who.many]} {where} {words.one_of(how, how, 'com ' + words.name().text)}"


def weather(words: Words) -> str:
    verb = words.one_of("choveu", "nevou", "fez sol", "ventou", "fez frio", "trovejou", "esfriou", "amanheceu nublado")
    return f"{verb} {words.one_of('', 'muito', 'pouco')} {words.at()} {words.when()}"


def state(words: Words) -> str:
    state = words.draw(lexicon.STATES).replace("_", " ")
    who = words.person()
    return words.one_of(
        f"{who.text} {'vieram' if who.many else 'veio'} do estado de {state}",
        f"a capital do estado de {state} é bonita",
        f"{words.name().text} mora em {words.city()}",
        f"{words.city()} fica a {cardinal(words.rng.randint(20, 900))} quilômetros daqui",
        f"de {words.city()} até {words.city()} são {cardinal(words.rng.randint(2, 30), 'f')} horas",
    )


# Questions end with a question mark, the others with a full stop.


def where_is(words: Words) -> str:
    many = words.rng.random() < 0.3
    kind = words.one_of("objects", "people", "places", "clothes", "animals")
    noun = words.described(kind, many)
    return f"onde {'estão' if many else words.one_of('está', 'fica', 'estava')} {noun.article} {noun.text}?"


def how_many(words: Words) -> str:
    kind = words.one_of("objects", "foods", "clothes", "animals", "people")
    noun = words.described(kind, True, 0.3)
    end = words.one_of("você tem", "eles viram", f"{words.name().text} encontrou", "há " + words.at())
    return f"quant{'os' if noun.gender == 'm' else 'as'} {noun.text} {end}?"


def is_it(words: Words) -> str:
    kind = words.one_of(*OBJECT_KINDS)
    what = words.person() if kind == "people" else words.thing(kind)
    who = words.one_of(words.person().text, "você", "ela", "ele")
    verb = words.verb(kind)
    many = False
    if who.split()[0] in ("os", "as", "meus", "minhas", "seus", "suas", "nossos", "nossas") or re.match(
        "estes|estas|aqueles|aquelas", who
    ):
        many = True
    start = words.one_of("", "", "por que ", "quando ", "como ", "será que ")
    return f"{start}{who} {conjugate(verb, words.one_of('past', 'present'), many)} {what.text}?"


def who_did(words: Words) -> str:
    kind = words.one_of(*OBJECT_KINDS)
    what = words.person() if kind == "people" else words.thing(kind)
    return f"quem {conjugate(words.verb(kind), 'past', False)} {what.text}{words.one_of('', ' ' + words.at())}?"


def greeting(words: Words) -> str:
    who = words.name().text
    return words.one_of(
        f"bom dia, {who}, tudo bem com você?",
        f"boa noite, {who}, até amanhã",
        f"{who}, que horas são agora?",
        f"{who}, você conhece {words.city()}?",
        f"desculpe, {who}, cheguei tarde",
        f"obrigado pela ajuda, {who}",
        f"parabéns, {who}, você venceu!",
        f"cuidado com {(what := words.described('objects')).article} {what.text}, {who}!",
        f"que {(what := words.noun('objects')).text} {words.adjective('objects', what)}!",
        f"feche {(what := words.noun('objects')).article} {what.text}, por favor",
    )


def because(words: Words) -> str:
    who, verb = words.person(), words.verb("alone")
    reason = words.one_of(
        "porque estava frio",
        "quando a luz acabou",
        "enquanto chovia",
        "depois do almoço",
        "antes da viagem",
        "se fizer sol",
        "mas ninguém viu",
        "e depois sumiu" if not who.many else "e depois sumiram",
        "até tarde",
    )
    tense = "present" if reason.startswith("se") else "past"
    return f"{who.text} {conjugate(verb, tense, who.many)} {reason}"


KINDS: dict[Callable[[Words], str], int] = {
    did_something: 10,
    was_there: 5,
    animal: 4,
    is_so: 8,
    more_than: 3,
    i_did: 6,
    will_do: 4,
    price: 3,
    counted: 4,
    born: 4,
    listed: 5,
    met: 3,
    travelled: 3,
    weather: 1,
    state: 2,
    where_is: 3,
    how_many: 2,
    is_it: 4,
    who_did: 3,
    greeting: 2,
    because: 3,
}


def finish(text: str) -> str:
    """One sentence, written properly."""
    text = contract(re.sub(r"\s+", " ", text).strip())
    text = text[0].upper() + text[1:]
    return text if text[-1] in "?!" else text + "."


def split_words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", text.lower())


@functools.cache
def spelling() -> frozenset[str]:
    """The Portuguese words that pyspellchecker knows, and some of Brazil."""
    from spellchecker import SpellChecker

    return frozenset(SpellChecker(language="pt").word_frequency.dictionary).union(lexicon.BRAZILIAN)


def read_names() -> dict[str, list[str]]:
    """Faker's Brazilian names that are one word."""
    from faker.providers.person.pt_BR import Provider as People

    def single(names: object) -> list[str]:
        return sorted({name for name in names if name.isalpha()})  # type: ignore[attr-defined]

    return {
        "m": single(People.first_names_male),
        "f": single(People.first_names_female),
        "last": single(People.last_names),
    }


def make_sentences(count: int, unseen: int, seed: int) -> tuple[list[str], list[str]]:
    """Sentences to train on, and unseen ones, each of which has a word that no training sentence has."""
    names = read_names()
    proper = {word.lower() for group in names.values() for word in group}
    proper |= {part.lower() for city in lexicon.CITIES + lexicon.STATES for part in city.split("_")}

    def drawn(wanted: int, share: float, rng: random.Random, fits: Callable[[str], bool]) -> list[str]:
        words, made = Words(rng, names, share), dict[str, None]()
        while len(made) < wanted:
            text = finish(rng.choices(list(KINDS), list(KINDS.values()))[0](words))
            if len(text) in LENGTHS and set(split_words(text)) - proper <= spelling() and fits(text):
                made[text] = None
        return list(made)

    train = drawn(count, 0.0, random.Random(seed), lambda text: True)
    known = {word for text in train for word in split_words(text)}
    return train, drawn(unseen, 0.4, random.Random(seed + 1), lambda text: bool(set(split_words(text)) - known))
