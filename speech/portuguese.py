"""How numbers, signs and abbreviations are read in Brazilian Portuguese."""

import re

from speech.spoken import (
    APART,
    EXPONENT,
    LONGEST,
    POWER,
    Letters,
    Rule,
    abbreviation_rules,
    address_rules,
    alternatives,
    roman,
    say_digits,
    split_number,
    table,
)

SMALL = (
    "zero um dois três quatro cinco seis sete oito nove dez onze doze treze catorze quinze dezesseis dezessete dezoito "
    "dezenove"
).split()
TENS = "- - vinte trinta quarenta cinquenta sessenta setenta oitenta noventa".split()
HUNDREDS = "- cento duzentos trezentos quatrocentos quinhentos seiscentos setecentos oitocentos novecentos".split()
SCALES = [("", ""), ("mil", "mil"), ("milhão", "milhões"), ("bilhão", "bilhões"), ("trilhão", "trilhões")]
ORDINALS = [
    "- primeiro segundo terceiro quarto quinto sexto sétimo oitavo nono".split(),
    "- décimo vigésimo trigésimo quadragésimo quinquagésimo sexagésimo septuagésimo octogésimo nonagésimo".split(),
    "- centésimo ducentésimo trecentésimo quadringentésimo quingentésimo sexcentésimo septingentésimo octingentésimo "
    "nongentésimo".split(),
]
FRACTIONS = "- - meio terço quarto quinto sexto sétimo oitavo nono décimo".split()
MONTHS = "- janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro".split()
LETTERS = Letters(
    names=table(
        "a á, b bê, c cê, d dê, e é, f efe, g gê, h agá, i i, j jota, k cá, l ele, m eme, n ene, o ó, p pê, q quê, "
        "r erre, s esse, t tê, u u, v vê, w dáblio, x xis, y ípsilon, z zê, ç cê-cedilha"
    ),
    digits=SMALL[:10],
    marks=table(
        ". ponto, @ arroba, / barra, - hífen, _ sublinhado, : dois pontos, = igual, ? interrogação, & e comercial, # "
        "cerquilha, % por cento, + mais, ~ til"
    ),
    words=set("ORG USP ONG ONGS AIDS OK UNICAMP DETRAN CREA UNESP COVID".split()),
    spelled=set("EUA IA UE USA UOL OAB HIV CEO UTI EAD TI CIA".split()),
)
# Nouns whose gender their ending does not tell, in the singular.
MASCULINE = set(
    "dia mapa problema sistema programa tema planeta poema cinema clima drama diploma idioma telegrama trauma grama "
    "quilograma miligrama coração calção cometa enigma esquema fantasma lema papa pijama sintoma atleta artista "
    "jornalista motorista turista dentista especialista colega camarada samba sofá guarda".split()
)
FEMININE = set(
    "mulher mão noite vez flor cor mãe lei luz voz cruz rede parte gente sede fase frase classe base chave ponte fonte "
    "torre árvore carne ave tarde neve morte sorte corrente semente serpente lente mente dor colher nuvem ordem nave "
    "crise análise síntese tese hipótese pele febre greve estante enchente foto moto tribo equipe raiz matriz série "
    "espécie superfície libra região religião opinião união reunião televisão decisão pensão lesão versão missão "
    "questão razão estação prisão sessão".split()
)
BETWEEN = r"(?:grandes?|enormes?|simples|importantes?|jovens|diferentes|fortes?|breves?|mais|mil)"  # of either gender
NOT_NOUNS = set("da das na nas a as à às ela elas mas para pra era uma cada toda".split())
MONEY = table(
    "R$ real reais centavo, US$ dólar dólares centavo, U$ dólar dólares centavo, $ dólar dólares centavo, € euro euros "
    "centavo, £ libra libras centavo, ¥ iene ienes centavo"
)
SHORT = table("mi milhões, bi bilhões, tri trilhões, M milhões, k mil")
UNITS = table(
    "km quilômetro, m metro, cm centímetro, mm milímetro, kg quilo, g grama, mg miligrama, t tonelada, l litro, L "
    "litro, ml mililitro, mL mililitro, h hora, min minuto, s segundo, ms milissegundo, ha hectare, hab. habitante, "
    "hab habitante, °C grau Celsius, °F grau Fahrenheit, ° grau, GB gigabyte, MB megabyte, KB quilobyte, kB quilobyte, "
    "TB terabyte, Mbps megabit por segundo, Hz hertz, kHz quilo-hertz, MHz mega-hertz, GHz giga-hertz, W watt, kW "
    "quilowatt, MW megawatt, kWh quilowatt-hora, V volt, kcal quilocaloria, cal caloria, dB decibel, un. unidade, dia "
    "dia, mês mês, ano ano, rpm rotação por minuto, pp ponto percentual, px pixel"
)
POWERS = table("² quadrado, 2 quadrado, ³ cúbico, 3 cúbico")
PLURALS = table("mês meses, pixel pixels, decibel decibéis, rotação rotações, hertz hertz")
# Before a name or a number, so that their dot ends no sentence.
TITLES = table(
    "Sr senhor, Sra senhora, Cia companhia, Srta senhorita, Srs senhores, Sras senhoras, Dr doutor, Dra doutora, Drs "
    "doutores, Dras doutoras, Prof professor, Profa professora, Profª professora, Profs professores, Eng engenheiro, "
    "Enga engenheira, Arq arquiteto, Gen general, Cel coronel, Cap capitão, Ten tenente, Sgt sargento, Maj major, Alm "
    "almirante, Pe padre, Exmo excelentíssimo, Exma excelentíssima, Ilmo ilustríssimo, Ilma ilustríssima, Sto santo, "
    "Sta santa, Gov governador, Dep deputado, Sen senador, Pres presidente, Av avenida, Al alameda, Pça praça, Trav "
    "travessa, Rod rodovia, Jd jardim, Pq parque, Ed edifício, Tel telefone, tel telefone, ap apartamento, apto "
    "apartamento, pág página, págs páginas, vol volume, vols volumes, Art artigo, art artigo, arts artigos, Fig "
    "figura, fig figura, Séc século, séc século, sécs séculos, Ex exemplo, ex exemplo, Obs observação, obs observação, "
    "aprox aproximadamente, vs versus, V. Exa vossa excelência, V. Sa vossa senhoria, i.e isto é, p. ex por exemplo, "
    "p.ex por exemplo"
)
CLOSINGS = table(
    "etc etcétera, Ltda limitada, ltda limitada, a.C antes de Cristo, d.C depois de Cristo, S.A esse á, Jr júnior, "
    "Univ universidade, Depto departamento, depto departamento"
)
BEFORE_NUMBERS = set("n N p pp cap Cap jan fev mar abr mai jun jul ago set out nov dez".split())
RULERS = alternatives(
    "Afonso Alberto Alexandre Augusto Bento Bonifácio Carlos Catarina Clemente Eduardo Elizabeth Felipe Fernando "
    "Filipe Francisco Frederico Gregório Guilherme Gustavo Henrique Inocêncio Isabel Ivan Jaime Jorge João José Juan "
    "Leopoldo Leão Luís Luis Manuel Margarida Maria Maximiliano Miguel Napoleão Nicolau Otto Paulo Pedro Pio Ramsés "
    "Ricardo Sancho Sebastião Sisto Urbano Vitor Vítor".split()
)
EVENTS = alternatives(
    "Guerra Congresso Encontro Simpósio Jornada Semana Bienal Copa Fórum Concurso Conferência Festival República Reich "
    "Região Exército Mostra Feira Cúpula Salão Campeonato Olimpíada Edição Plano Concílio".split()
)


# Numbers in words


def below_thousand(n: int) -> str:
    if n == 100:
        return "cem"
    words = [HUNDREDS[n // 100]] if n >= 100 else []
    if n % 100 >= 20:
        words.append(TENS[n % 100 // 10])
    if rest := n % 100 if n % 100 < 20 else n % 10:
        words.append(SMALL[rest])
    return " e ".join(words)


def feminine(words: str) -> str:
    return re.sub(r"\bum\b", "uma", re.sub(r"\bdois\b", "duas", re.sub(r"entos\b", "entas", words)))


def cardinal(n: int, gender: str = "m") -> str:
    """1234 as `mil duzentos e trinta e quatro`: `e` within hundreds, and before a last part that is short or round."""
    if n == 0:
        return SMALL[0]
    parts, last = [], 0
    for power in range(len(SCALES) - 1, -1, -1):
        if group := n // 1000**power % 1000:
            words = feminine(below_thousand(group)) if gender == "f" and power < 2 else below_thousand(group)
            parts.append("mil" if (power, group) == (1, 1) else f"{words} {SCALES[power][group > 1]}".strip())
            last = group
    *before, end = parts
    return " ".join([*before, *(["e"] if before and (last <= 100 or last % 100 == 0) else []), end])


def ordinal(n: int, gender: str = "m", plural: str = "") -> str:
    if not 0 < n < 1_000_000:
        return cardinal(n, gender) if n < 10**LONGEST else say_digits(str(n), SMALL)
    words = [f"{cardinal(n // 1000)} " * (n >= 2000) + "milésimo"] if n >= 1000 else []
    words += [ORDINALS[2 - place][digit] for place, digit in enumerate(map(int, f"{n % 1000:03}")) if digit]
    ending = ("a" if gender == "f" else "o") + plural
    return " ".join(re.sub(r"(?<=[eéimort]\w)o$|o$", ending, word) for word in " ".join(words).split())


def singular(noun: str) -> str:
    """The singular of a plural, where its ending tells; of `flores` only because `flor` is in a list here."""
    for ending, one in (("ões", "ão"), ("ães", "ãe"), ("res", "r"), ("zes", "z"), ("ns", "m")):
        found = noun.removesuffix(ending) + one
        if noun.endswith(ending) and (found in FEMININE | MASCULINE or ending in ("ões", "ns")):
            return found
    return noun.removesuffix("s")


def gender_of(noun: str, plural: bool = False) -> str:
    """`f` for what is surely a feminine noun, in the number that is asked for."""
    noun = noun.lower()
    one = singular(noun)
    if noun in NOT_NOUNS or one in MASCULINE or (plural and not noun.endswith("s")):
        return "m"
    return "f" if one in FEMININE or re.fullmatch(r"\w+(?:a|ã|ção|dade|agem|tude|ice)", one) else "m"


def say_decimals(decimals: str) -> str:
    """The digits after the comma: noughts by themselves, then one number if it is short."""
    rest = decimals.lstrip("0")
    end = [] if not rest else [cardinal(int(rest)) if len(rest) < 3 else say_digits(rest, SMALL)]
    return " ".join([SMALL[0]] * (len(decimals) - len(rest)) + end)


def number(text: str, gender: str = "m") -> str:
    """A number as it is written here: 1.234,56; 007 is read digit by digit."""
    whole, decimals = split_number(text, ".", ",")
    by_digits = len(whole) > LONGEST or (len(whole) > 1 and whole[0] == "0")
    said = say_digits(whole, SMALL) if by_digits else cardinal(int(whole), gender)
    return f"{said} vírgula {say_decimals(decimals)}" if decimals else said


def plural(count: int, word: str) -> str:
    return word + "s" * (count != 1)


# What the rules call, each with its match


def say_money(found: re.Match[str]) -> str:
    one, many, coin = MONEY[found["sign"] or found["after"]].split()
    text, minus = found["money"] or found["before"], "menos " if found["minus"] else ""
    whole, decimals = split_number(text, ".", ",")
    if found["scale"]:
        scale = SHORT.get(found["scale"], found["scale"])
        return f"{minus}{number(text)} {scale} {'' if scale == 'mil' else 'de '}{many}"
    if len(decimals) > 2 or len(whole) > LONGEST:
        return f"{minus}{number(text, gender_of(one))} {many}"
    coins = int(decimals.ljust(2, "0"))
    said = [f"{cardinal(coins)} {plural(coins, coin)}"] if coins else []
    if int(whole) or not coins:
        of = "de " if int(whole) and int(whole) % 1_000_000 == 0 else ""
        said.insert(0, f"{cardinal(int(whole), gender_of(one))} {of}{one if int(whole) == 1 else many}")
    return minus + " e ".join(said)


def name_unit(unit: str, power: str | None, many: bool) -> str:
    first, *rest = UNITS[unit].split()
    if power and first == "segundo":
        rest = [f"ao {POWERS[power].replace('cúbico', 'cubo')}"]
    elif power:
        rest = [POWERS[power] + "s" * many]
    if many:
        first = PLURALS.get(first) or (first if first.endswith("hertz") else re.sub(r"^\w+", r"\g<0>s", first))
        rest = ["percentuais" if word == "percentual" else word for word in rest]
    return " ".join([first, *rest])


def say_unit(found: re.Match[str], many: bool) -> str:
    per = f" por {name_unit(found['per'], found['per_power'], False)}" if found["per"] else ""
    return f" {name_unit(found['unit'], found['power'], many)}{per}"


def say_measure(found: re.Match[str]) -> str:
    gender = gender_of(UNITS[found["unit"]].split()[0])
    said = number(found["number"], gender)
    said += f" {found['to']} {number(found['last'], gender)}" if found["last"] else ""
    return said + say_unit(found, split_number(found["last"] or found["number"], ".", ",")[0] not in ("0", "1"))


def say_power(found: re.Match[str]) -> str:
    """1e10, 3 × 10^8 m/s, and what follows the number in 10^32."""
    said = f"{number(found['factor'].replace('.', ','))} vezes dez" if found["factor"] else ""
    exponent = f"{'menos ' if found['minus'] else ''}{cardinal(int(found['exponent']))}"
    said += {"dois": " ao quadrado", "três": " ao cubo"}.get(exponent, f" elevado a {exponent}")
    return said + (say_unit(found, True) if found["unit"] else "")


def say_date(found: re.Match[str]) -> str:
    day, month, year = int(found["day"]), int(found["month"]), found["year"]
    if not (1 <= day <= 31 and 1 <= month <= 12):
        return found[0]
    said = f"{'primeiro' if day == 1 else cardinal(day)} de {MONTHS[month]}"
    return f"{said} de {cardinal(int(year))}" if year else said


def say_month(found: re.Match[str]) -> str:
    return f"{MONTHS[int(found[1])]} de {cardinal(int(found[2]))}"


def say_written_date(found: re.Match[str]) -> str:
    month = next(name for name in MONTHS if name.startswith(found[2].lower()))
    day = "primeiro" if int(found[1]) == 1 else cardinal(int(found[1]))
    return f"{day} de {month}" + (f" de {cardinal(int(found[3]))}" if found[3] else "")


def say_time(found: re.Match[str]) -> str:
    hour, minute, second = int(found["hour"]), int(found["minute"] or 0), int(found["second"] or 0)
    if hour > 24:
        return found[0]
    hours, minutes = f"{cardinal(hour, 'f')} hora{'s' * (hour > 1)}", f"{cardinal(minute)} {plural(minute, 'minuto')}"
    if second:
        return f"{hours}, {minutes} e {cardinal(second)} {plural(second, 'segundo')}"
    if minute and (not hour or found["exact"]):
        return f"{hours} e {minutes}"
    return f"{cardinal(hour, 'f')} e {cardinal(minute)}" if minute else hours


def say_fraction(found: re.Match[str]) -> str:
    above, below, gender = int(found["above"]), int(found["below"]), gender_of(found["noun"] or "")
    whole = f"{cardinal(int(found['whole']), gender)} e " if found["whole"] else ""
    if (above, below) == (1, 2) and (whole or found["noun"]):
        return whole + ("meia" if gender == "f" else "meio")
    return f"{whole}{cardinal(above)} {plural(above, FRACTIONS[below])}"


def say_romans(found: re.Match[str], most_ordinal: int = 0, gender: str = "m") -> str:
    """The match with its Roman numerals read: as ordinals up to `most_ordinal`, as cardinals from there on."""

    def read(one: re.Match[str]) -> str:
        value = roman(one[0])
        return (ordinal(value, gender) if value <= most_ordinal else cardinal(value)) if value else one[0]

    return re.sub(r"(?<= )[IVXLC]+(?!\w)", read, found[0])


def say_ruler(found: re.Match[str]) -> str:
    return say_romans(found, 10, "f" if re.fullmatch(r"Isabel|Elizabeth|\w+a", found["name"]) else "m")


def say_event(found: re.Match[str]) -> str:
    return ordinal(roman(found[1]), gender_of(found[2])) if roman(found[1]) else found[0]


def say_counted(found: re.Match[str]) -> str:
    noun, many = found["noun"] or "", split_number(found["number"], ".", ",")[0] != "1"
    return number(found["number"], gender_of(noun, many))


def say_phone(found: re.Match[str]) -> str:
    """Digit by digit, where six is `meia`; two years with a hyphen are no telephone."""
    if years := re.fullmatch(r"(1\d\d\d|20\d\d)-(1\d\d\d|20\d\d)", found[0]):
        return f"{cardinal(int(years[1]))} a {cardinal(int(years[2]))}"
    return "mais " * ("+" in found[0]) + say_digits(found[0], [*SMALL[:6], "meia", *SMALL[7:10]])


N = r"(?:\d{1,3}(?:\.\d{3})++(?!\d)|\d++)(?:,\d++)?"
PRICE = rf"(?:\d++[.,]\d{{1,2}}(?![.,]?\d)|{N})"
SIGN, UNIT = alternatives(MONEY), alternatives(UNITS)
CAPITAL, TO = "[A-ZÀ-ÖØ-Þ]", "(?:a|ou|e|até)"
SCALE = r"(?: ?(?P<scale>mil|milhão|milhões|bilhão|bilhões|trilhão|trilhões|mi|bi|tri|M|k)\b)?"
SAINTS = alternatives("Paulo José João Pedro Bernardo Francisco Luís Caetano Vicente Sebastião Jorge Miguel".split())
PARTS = alternatives(
    "capítulo volume tomo parte ato cena fase etapa livro artigo título seção anexo item grupo classe tipo módulo "
    "unidade nível inciso página".split()
)
MEASURED = (
    rf" ?(?P<unit>{UNIT})(?P<power>[²³]|(?<=m)[23])?(?:/(?P<per>{UNIT})(?P<per_power>[²³]|(?<=m)[23])?)?(?![\w²³/])"
)
CROWNED = r"(?:[Dd]om|[Dd]ona|[Rr]ei|[Rr]ainha|[Pp]apa|[Ii]mperador|[Ii]mperatriz|[Pp]ríncipe|[Cc]zar)"

ADDRESSES: list[Rule] = [
    *address_rules(LETTERS),
    (
        r"(?<![\d.,])(?:\+\d{1,3} ?)?(?:\(\d\d\) ?|\b\d\d (?=9?\d{4}-))?(?:9 )?\d{4,5}-\d{4}(?![\d-]|[.,]\d)|"
        r"(?<![\d.,])0[38]00[ -]\d{3}[ -]\d{3,4}(?!\d)",
        say_phone,
    ),
    (  # CPF, CNPJ, CEP
        r"(?<![\d.,])(?:\d{3}\.\d{3}\.\d{3}-\d\d|\d\d\.\d{3}\.\d{3}/\d{4}-\d\d|\d{5}-\d{3})(?!\d)",
        lambda found: say_digits(found[0], SMALL),
    ),
]
DATES: list[Rule] = [
    (
        r"(?<![\d/.,-])(?P<day>\d{1,2})[ºo]?(?P<mark>[/.-])(?P<month>\d{1,2})(?P=mark)(?P<year>\d{4}|\d\d)"
        r"(?![\d/]|[.,-]\d)",
        say_date,
    ),
    (
        r"(?<![\d/.,-])(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)(?:T(?P<time>)(?=\d\d:)|(?!\d|-\d))",
        lambda found: say_date(found) + (", " if found["time"] is not None else ""),
    ),
    (r"(?<![\d/.,])(?P<day>[0-3]\d)/(?P<month>[01]\d)(?P<year>)(?![\d/])", say_date),
    (r"(?<=\bdia )(?P<day>\d{1,2})/(?P<month>\d{1,2})(?P<year>)(?![\d/])", say_date),
    (r"(?<![\d/.,])(0?[1-9]|1[0-2])/((?:19|20)\d\d)(?![\d/])", say_month),
    (
        r"(?i)(?<![\d.,])(\d{1,2})º? (?:de )?(jan|fev|mar|abr|mai|jun|jul|ago|set|out|nov|dez)\."
        r"(?: (?:de )?(\d{4})\b)?",
        say_written_date,
    ),
    (rf"(?<![\d.,])0?1º? de (?={'|'.join(MONTHS[1:])})", "primeiro de "),
]
AMOUNTS: list[Rule] = [
    (rf"{POWER}{EXPONENT}(?:{MEASURED}|(?![\w^]|[.,]\d))", say_power),
    (rf"({SIGN}) ?({N}) ?[-–—] ?(?=\d)", r"\2 a \1 "),
    (r"(?<=\d) - (?=[\d.,]{1,20} ?=)", " menos "),
    (r"(?<=[\dh%])(?:[-–—]| [-–—] )(?=\d)", " a "),
    (r"(?<![^\s(:=])[-−](?=\d)", "menos "),
    (
        r"(?<![\d:.,])(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?P<exact>(?!))?"
        r"(?: ?(?:h|hs|hrs)\b)?(?![\d:])",
        say_time,
    ),
    (
        r"(?<![\d:.,])(?P<hour>\d{1,2}) ?(?:h|hs|hrs)"
        r"(?: ?(?P<minute>[0-5]\d)(?P<second>(?!))?(?P<exact> ?min\b)?(?!\w)|\b)",
        say_time,
    ),
    (
        rf"(?P<minus>[-−] ?)?(?:(?P<sign>{SIGN}) ?(?P<money>{PRICE})|(?<![\d.,])(?P<before>{PRICE}) ?"
        rf"(?P<after>[€£¥])){SCALE}",
        say_money,
    ),
    (r"(?<=\d) ?%", " por cento"),
    (rf"(?<![\d.,])(?P<number>{N})(?: (?P<to>{TO}) (?P<last>{N}))?{MEASURED}", say_measure),
    (rf"(?<=[a-zç]{{3}})/({UNIT})([²³]?)(?!\w)", lambda found: f" por {name_unit(found[1], found[2], False)}"),
    (r"\bkm/h\b", "quilômetros por hora"),
    (
        r"(?<!\d)(\d{1,15})\.?(?:(º)|(ª)|(o)(?=s?\b)|(a)(?=s?\b))(s?)(?!\w)",
        lambda found: ordinal(int(found[1]), "f" if found[3] or found[5] else "m", found[6]),
    ),
    (r"\b[nN](?:\.?[º°]|\.?o\.?(?= \d)|\.)(?= ?\d)", "número"),
    (r"\b[nN]\.?º", "número"),
    (
        r"(?i)(\b(?:placar|venceu|perdeu|ganhou|empatou|vitória|derrota|empate)(?: de| por)? \d{1,2}) ?x ?(?=\d)",
        r"\1 a ",
    ),
    (r"(?<=\d) ?[x×] ?(?=[\d.,]{1,20} ?=)", " vezes "),
    (r"(?<=\d)[xX]\b", " vezes"),
    (r"(?<=\d) ?[x×] ?(?=\d)", " por "),
    (
        r"(?<![\d/.,])(?:(?P<whole>\d{1,3}) )?(?P<above>[1-9])/(?P<below>[2-9]|10)(?![\d/.,]*\d)"
        r"(?:(?= (?:de )?(?P<noun>[^\W\d_]+))|)",
        say_fraction,
    ),
]
WORDS: list[Rule] = [
    (rf"\bD\. (?={CAPITAL}\w*a\b)", "Dona "),
    (rf"\bD\. (?={CAPITAL})", "Dom "),
    (rf"\bR\. (?={CAPITAL}[a-zà-ÿ])", "Rua "),
    (rf"\bS\. (?={SAINTS}\b)", "São "),
    (rf"(?:\b{CROWNED} (?P<name>{CAPITAL}\w+)(?: {CAPITAL}[a-zà-ÿ]+)?) [IVX]+\b", say_ruler),
    (rf"\b(?P<name>{RULERS}) [IVX]+\b", say_ruler),
    (r"\b[Ss]éc(?:ulo|\.)s? [IVX]+\b(?:(?:,| [ae]| ao| ou) [IVX]+\b)*", lambda found: say_romans(found, 10)),
    (rf"\b(?i:{PARTS}) [IVXLC]+\b", say_romans),
    (rf"\b([IVX]+) (?=({EVENTS})\b)", lambda found: f"{say_event(found)} ".replace("  ", " ")),
    (rf"\b{CAPITAL}[a-zà-ÿ]+ (?=[IVX]{{2}})[IVX]+\b(?!\.)", say_romans),
    (r"(?i)\bcap\. ?(?=\d)", "capítulo "),
    (r"\bp\. ?(?=\d)", "página "),
    (r"\bpp\. ?(?=\d)", "páginas "),
    (r"\b([cps])/ ?(?=[^\W\d_])", lambda found: {"c": "com ", "p": "para ", "s": "sem "}[found[1]]),
    (r"\bS/A\b", "esse á"),
    *abbreviation_rules(TITLES, CLOSINGS, CAPITAL),
    (rf"\b([DS]ra?|Srta|Profa?) (?={CAPITAL})", lambda found: f"{TITLES[found[1]]} "),
]
NUMBERS: list[Rule] = [
    (
        r"(?<![\d.])\d++(?:\.\d++)++",
        lambda found: found[0] if re.fullmatch(N, found[0]) else found[0].replace(".", " ponto "),
    ),
    (r"(?<![\d,.])\d++(?:,\d++){2,}+", lambda found: found[0].replace(",", ", ")),
    (r"(?i)(?<=\b[aà]s )(\d{1,2})(?![\d.,]*\d)", lambda found: number(found[1], "f")),
    (rf"(?<!\d)(?P<number>{N})(?:(?=(?: {TO} {N})?(?: {BETWEEN}){{0,3}} (?P<noun>[^\W\d_]+))|)", say_counted),
]
RULES = [*ADDRESSES, *DATES, *AMOUNTS, *APART, *WORDS, *NUMBERS]
SIGNS = table(
    "R$ reais, & e, + mais, = igual a, % por cento, @ arroba, ° graus, < menor que, > maior que, × vezes, ÷ dividido "
    "por, ± mais ou menos, § parágrafo, # cerquilha, € euros, £ libras, ¥ ienes, $ dólares, ² ao quadrado, ³ ao cubo, "
    "≈ cerca de, − menos, √ raiz de"
)
