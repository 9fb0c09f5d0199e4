"""How numbers, signs and abbreviations are read in English."""

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
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = ["", "thousand", "million", "billion", "trillion"]
ORDINALS = table("one first, two second, three third, five fifth, eight eighth, nine ninth, twelve twelfth")
FRACTIONS = "- - half third quarter fifth sixth seventh eighth ninth tenth".split()
HOURS = ["hundred", "o'clock"]  # 14:00, 2:00
MONTHS = "- January February March April May June July August September October November December".split()
LETTERS = Letters(
    names=table(
        "a ay, b bee, c see, d dee, e ee, f ef, g gee, h aitch, i eye, j jay, k kay, l el, m em, n en, o oh, p pee, "
        "q cue, r ar, s ess, t tee, u you, v vee, w double-you, x ex, y why, z zee"
    ),
    digits=SMALL[:10],
    marks=table(
        ". dot, @ at, / slash, - dash, _ underscore, : colon, = equals, ? question mark, & and, # hash, % percent, "
        "+ plus, ~ tilde"
    ),
    words=set("ORG AIDS OPEC NASDAQ UNESCO OK AWOL ASCII IKEA".split()),
    spelled=set("USA US UK UN EU AI CEO ID DIY LA IQ HIV CIA FAQ ETA IOU USB UFO SOS ATM API CAD".split()),
)
MONEY = table(
    "$ dollar dollars cent cents, US$ dollar dollars cent cents, R$ real reais centavo centavos, € euro euros cent "
    "cents, £ pound pounds penny pence, ¥ yen yen sen sen"
)
SHORT = table("m million, M million, bn billion, b billion, B billion, tn trillion, k thousand, K thousand")
UNITS = table(
    "km kilometer, m meter, cm centimeter, mm millimeter, kg kilogram, g gram, mg milligram, t ton, l liter, L liter, "
    "ml milliliter, mL milliliter, h hour, hr hour, hrs hour, min minute, s second, sec second, ms millisecond, ha "
    "hectare, °C degree Celsius, °F degree Fahrenheit, ° degree, GB gigabyte, MB megabyte, KB kilobyte, kB kilobyte, "
    "TB terabyte, Mbps megabit per second, Hz hertz, kHz kilohertz, MHz megahertz, GHz gigahertz, W watt, kW kilowatt, "
    "MW megawatt, kWh kilowatt-hour, V volt, kcal kilocalorie, cal calorie, dB decibel, mph mile per hour, mi mile, ft "
    "foot, lb pound, lbs pound, oz ounce, yd yard, rpm revolution per minute, px pixel, day day, year year"
)
POWERS = table("² square, 2 square, ³ cubic, 3 cubic")
# Before a name or a number, so that their dot ends no sentence.
TITLES = table(
    "Mr Mister, Mrs Missus, Ms Miz, Dr Doctor, Prof Professor, Gen General, Col Colonel, Capt Captain, Lt Lieutenant, "
    "Sgt Sergeant, Maj Major, Rev Reverend, Hon Honorable, Gov Governor, Sen Senator, Rep Representative, Pres "
    "President, Messrs Messieurs, Mt Mount, Ft Fort, Vol volume, vol volume, Ch chapter, ch chapter, Fig figure, fig "
    "figure, e.g for example, i.e that is, vs versus, approx approximately, est established, Tel telephone, tel "
    "telephone, cf compare, viz namely"
)
CLOSINGS = table(
    "etc et cetera, Inc Incorporated, Ltd Limited, Co Company, Corp Corporation, Jr Junior, Sr Senior, Ave Avenue, "
    "Blvd Boulevard, Rd Road, Dept Department, dept department, Univ University, Assn Association, Bros Brothers"
)
BEFORE_NUMBERS = set("No Nos no nos p pp Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec".split())
PARTS = alternatives(
    "chapter volume part act scene phase stage book article title section appendix item group class type module unit "
    "level war page figure table".split()
)
RULERS = alternatives(
    "Albert Alexander Benedict Catherine Charles Christian Clement Edward Elizabeth Ferdinand Francis Frederick "
    "George Gregory Gustav Henry Innocent Ivan James John Leo Leopold Louis Mary Napoleon Nicholas Otto Paul Pedro "
    "Philip Pius Ramses Richard Robert Victor Wilhelm William".split()
)


# Numbers in words


def below_thousand(n: int) -> str:
    """347 as `three hundred and forty-seven`."""
    hundreds = f"{SMALL[n // 100]} hundred" if n >= 100 else ""
    rest = n % 100
    words = SMALL[rest] if rest < 20 else TENS[rest // 10] + (f"-{SMALL[rest % 10]}" if rest % 10 else "")
    return " and ".join(filter(None, [hundreds, words if rest else ""]))


def cardinal(n: int) -> str:
    """1,005 as `one thousand and five`: `and` before what is below a hundred."""
    if n == 0:
        return SMALL[0]
    groups = [(n // 1000**power % 1000, SCALES[power]) for power in range(len(SCALES) - 1, -1, -1)]
    *before, end = [f"{below_thousand(group)} {scale}".strip() for group, scale in groups if group]
    return " ".join([*before, *(["and"] if before and 0 < n % 1000 < 100 else []), end])


def ordinal(n: int) -> str:
    if n >= 10**LONGEST:
        return say_digits(str(n), SMALL)
    *before, last = re.split(r"(?=[ -]\w+$)", cardinal(n))
    mark, word = (last[0], last[1:]) if before else ("", last)
    return "".join(before) + mark + ORDINALS.get(word, re.sub("y$", "ie", word) + "th")


def year(n: int) -> str:
    """1999 as `nineteen ninety-nine`, 1905 as `nineteen oh five`, 2005 as `two thousand and five`."""
    if not 1100 <= n <= 2099 or n // 10 == 200:
        return cardinal(n)
    century, rest = divmod(n, 100)
    return f"{cardinal(century)} {'hundred' if not rest else f'oh {SMALL[rest]}' if rest < 10 else cardinal(rest)}"


def number(text: str) -> str:
    """A number as it is written here: 1,234.56; 007 is read digit by digit."""
    whole, decimals = split_number(text, ",", ".")
    by_digits = len(whole) > LONGEST or (len(whole) > 1 and whole[0] == "0")
    said = say_digits(whole, SMALL) if by_digits else cardinal(int(whole))
    return f"{said} point {say_digits(decimals, SMALL)}" if decimals else said


# What the rules call, each with its match


def say_money(found: re.Match[str]) -> str:
    one, many, coin, coins = MONEY[found["sign"] or found["after"]].split()
    text, minus = found["money"] or found["before"], "minus " if found["minus"] else ""
    whole, decimals = split_number(text, ",", ".")
    if scale := found["scale"]:
        return f"{minus}{number(text)} {SHORT.get(scale, scale)} {many}"
    if len(decimals) > 2 or len(whole) > LONGEST:
        return f"{minus}{number(text)} {many}"
    small = int(decimals.ljust(2, "0"))
    said = [f"{cardinal(small)} {coin if small == 1 else coins}"] if small else []
    if int(whole) or not small:
        said.insert(0, f"{cardinal(int(whole))} {one if int(whole) == 1 else many}")
    return minus + " and ".join(said)


def name_unit(unit: str, power: str | None, many: bool) -> str:
    first, *rest = UNITS[unit].split()
    if many:
        first = "feet" if first == "foot" else first if first.endswith("hertz") else f"{first}s"
    if power and first == "second":
        return f"{first} {POWERS[power].replace('cubic', 'cube').replace('square', 'squared')}"
    return " ".join([*([POWERS[power]] if power else []), first, *rest])


def say_unit(found: re.Match[str], many: bool) -> str:
    per = f" per {name_unit(found['per'], found['per_power'], False)}" if found["per"] else ""
    return f" {name_unit(found['unit'], found['power'], many)}{per}"


def say_measure(found: re.Match[str]) -> str:
    said = number(found["number"]) + (f" {found['to']} {number(found['last'])}" if found["last"] else "")
    return said + say_unit(found, (found["last"] or found["number"]) != "1" and not found["joined"])


def say_power(found: re.Match[str]) -> str:
    """1e10, 3 × 10^8 m/s, and what follows the number in 10^32."""
    said = f"{number(found['factor'])} times ten" if found["factor"] else ""
    exponent = f"{'minus ' if found['minus'] else ''}{cardinal(int(found['exponent']))}"
    said += {"two": " squared", "three": " cubed"}.get(exponent, f" to the power of {exponent}")
    return said + (say_unit(found, True) if found["unit"] else "")


def say_date(found: re.Match[str]) -> str:
    """Month first, unless it can only be the day."""
    month, day = int(found["month"]), int(found["day"])
    if month > 12 and found["mark"]:
        month, day = day, month
    if not (1 <= day <= 31 and 1 <= month <= 12):
        return found[0]
    return f"{MONTHS[month]} {ordinal(day)}" + (f", {year(int(found['year']))}" if found["year"] else "")


def say_month_day(found: re.Match[str]) -> str:
    month = next(name for name in MONTHS if name.startswith(found["month"][:3]))
    end = f", {year(int(found['year']))}" if found["year"] else ""
    day = ordinal(int(found["day"]))
    return f"{month} {day}{end}" if found[0].startswith(found["month"]) else f"the {day} of {month}{end}"


def say_time(found: re.Match[str]) -> str:
    hour, minute, half = int(found["hour"]), found["minute"], found["half"]
    if hour > 24:
        return found[0]
    end = f" {LETTERS.names[half.lower()]} em" if half else ""
    if not minute or (minute == "00" and half):
        said = cardinal(hour)
    elif minute == "00":
        said = f"{cardinal(hour)} {HOURS[0 < hour < 13]}"
    else:
        said = f"{cardinal(hour)} {'oh ' if minute[0] == '0' else ''}{cardinal(int(minute))}"
    if found["second"] and int(found["second"]):
        said += f" and {cardinal(int(found['second']))} second{'s' * (int(found['second']) > 1)}"
    return said + end


def say_fraction(found: re.Match[str]) -> str:
    above, below = int(found["above"]), int(found["below"])
    whole = f"{cardinal(int(found['whole']))} and " if found["whole"] else ""
    if whole and (above, below) == (1, 2):
        return f"{whole}a half"
    name = FRACTIONS[below] if above == 1 else "halves" if below == 2 else f"{FRACTIONS[below]}s"
    return f"{whole}{cardinal(above)} {name}"


def say_decade(found: re.Match[str]) -> str:
    words = year(int(found[1])) if found[1] else cardinal(int(found[2]))
    return re.sub("y$", "ie", words) + "s"


def say_ruler(found: re.Match[str]) -> str:
    return f"{found[1]} the {ordinal(roman(found[2])).capitalize()}" if roman(found[2]) else found[0]


def say_part(found: re.Match[str]) -> str:
    return f"{found[1]} {cardinal(roman(found[2]))}" if roman(found[2]) else found[0]


def say_counted(found: re.Match[str]) -> str:
    return year(int(found[0])) if re.fullmatch(r"1[1-9]\d\d|20\d\d", found[0]) else number(found[0])


def say_phone(found: re.Match[str]) -> str:
    return "plus " * ("+" in found[0]) + say_digits(found[0], SMALL)


N = r"(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?"
SIGN, UNIT = alternatives(MONEY), alternatives(UNITS)
MEASURED = (
    rf" ?(?P<unit>{UNIT})(?P<power>[²³]|(?<=m)[23])?(?:/(?P<per>{UNIT})(?P<per_power>[²³]|(?<=m)[23])?)?(?![\w²³/])"
)
NAMES = alternatives([*MONTHS[1:], *"Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec.".split()])
SCALE = r"(?: ?(?P<scale>thousand|million|billion|trillion|[mM]|[bt]n|[bB]|[kK])\b)?"
CROWNED = r"(?:King|Queen|Pope|Emperor|Empress|Prince|Tsar|Czar)"

ADDRESSES: list[Rule] = [
    *address_rules(LETTERS),
    (
        r"(?<![\d.,])(?:\+?\d{1,3}[ -])?(?:\(\d{3}\) ?|\d{3}[ -.])?\d{3}[-.]\d{4}(?![\d-]|[.,]\d)|"
        r"(?<![\d.,])\d{3}-\d\d-\d{4}(?![\d-])|(?<![\d.,-])\d{3}(?:\.\d{1,3}){3}(?![\d.])|\+\d[\d ]{6,16}\d",
        say_phone,
    ),
]
DATES: list[Rule] = [
    (
        rf"\b(?P<month>{NAMES}) (?P<day>[0-3]?\d)(?:st|nd|rd|th)?(?:,? (?P<year>\d{{4}}))?(?![\w:])(?![.,]\d)",
        say_month_day,
    ),
    (
        rf"(?:\b[Tt]he )?(?<![\d.,])(?P<day>[0-3]?\d)(?:st|nd|rd|th)?(?: of)? (?P<month>{NAMES})"
        r"(?:,? (?P<year>\d{4}))?(?!\w)",
        say_month_day,
    ),
    (
        r"(?<![\d/.,-])(?P<month>\d{1,2})(?P<mark>[/.-])(?P<day>\d{1,2})(?P=mark)(?P<year>\d{4}|\d\d)(?![\d/]|[.,-]\d)",
        say_date,
    ),
    (
        r"(?<![\d/.,-])(?P<year>\d{4})(?P<mark>(?=-))-(?P<month>\d\d)-(?P<day>\d\d)(?:T(?P<time>)(?=\d\d:)|(?!\d|-\d))",
        lambda found: say_date(found) + (", " if found["time"] is not None else ""),
    ),
    (r"(?<![\d/.,])(?P<month>[01]\d)(?P<mark>/)(?P<day>[0-3]\d)(?P<year>)(?![\d/])", say_date),
]
AMOUNTS: list[Rule] = [
    (rf"{POWER}{EXPONENT}(?:{MEASURED}|(?![\w^]|[.,]\d))", say_power),
    (rf"({SIGN}) ?({N}) ?[-–—] ?(?=\d)", r"\2 to \1"),
    (r"(?<=\d) - (?=[\d.,]{1,20} ?=)", " minus "),
    (r"(?<=[\d%])(?:[-–—]| [-–—] )(?=\d)", " to "),
    (r"(?<![^\s(:=])[-−](?=\d)", "minus "),
    (
        r"(?i)(?<![\d:.,])(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?! ?(?:[ap]\.? ?m\b))"
        r"(?P<half>(?!))?(?![\d:])",
        say_time,
    ),
    (
        r"(?i)(?<![\d:.,])(?P<hour>\d{1,2})(?::(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?)? ?"
        r"(?P<half>[ap])(?:m\b|\.m\.(?!$)|\.m(?=\.$))",
        say_time,
    ),
    (
        rf"(?P<minus>[-−] ?)?(?:(?P<sign>{SIGN}) ?(?P<money>{N})|(?<![\d.,])(?P<before>{N}) ?(?P<after>[€£¥])){SCALE}",
        say_money,
    ),
    (r"(?<!\d)((?:1\d|20)\d0)['’]?s\b|(?:(?<=\bthe )|(?<=\b(?:his|her) )|['’])([1-9]0)['’]?s\b", say_decade),
    (r"(?<=\d) ?%", " percent"),
    (rf"(?<![\d.,])(?P<number>{N})(?: (?P<to>to|or|and) (?P<last>{N}))?(?P<joined>-)?{MEASURED}", say_measure),
    (rf"(?<=[a-z]{{3}})/({UNIT})([²³]?)(?!\w)", lambda found: f" per {name_unit(found[1], found[2], False)}"),
    (r"\bkm/h\b", "kilometers per hour"),
    (
        r"(?i)(?<!\d)((?:\d{1,3}(?:,\d{3}){1,4}|\d{1,15}))(?:st|nd|rd|th)\b",
        lambda found: ordinal(int(found[1].replace(",", ""))),
    ),
    (r"#(?=\d)|\b[Nn]º ?(?=\d)", "number "),
    (r"(?<=\d)x\b", " times"),
    (r"(?<=\d) ?[x×] ?(?=\d)", " by "),
    (r"(?<![\d/.,])(?:(?P<whole>\d{1,3}) )?(?P<above>[1-9])/(?P<below>[2-9]|10)(?![\d/.,]*\d)", say_fraction),
]
WORDS: list[Rule] = [
    (r"(?<=[a-z] )St\.$", "Street."),
    (r"(?<=[a-z] )St(?:\.(?! [A-Z])|(?=[,;]))", "Street"),
    (r"\bSt\. ?(?=[A-Z])", "Saint "),
    (rf"\b({CROWNED} [A-Z]\w+(?: [A-Z][a-z]+)?) ([IVX]+)\b", say_ruler),
    (rf"\b({RULERS}) ([IVX]{{2,}}|V)\b(?!\.)", say_ruler),
    (rf"\b((?i:{PARTS})) ([IVXLC]+)\b", say_part),
    (r"\b([A-Z][a-z]+) (?=[IVX]{2})([IVX]+)\b(?!\.)", say_part),
    (r"\bp\. ?(?=\d)", "page "),
    (r"\bpp\. ?(?=\d)", "pages "),
    (r"\bw/ ?(?=[a-z])", "with "),
    (r"\b[Nn]o(s?)\. ?(?=\d)", r"number\1 "),
    (r"\bPh\.? ?D\b\.?", "pee aitch dee"),
    *abbreviation_rules(TITLES, CLOSINGS, "[A-Z]"),
    (r"\b(Mr|Mrs|Ms|Dr|Prof) (?=[A-Z])", lambda found: f"{TITLES[found[1]]} "),
]
NUMBERS: list[Rule] = [
    (r"(?<![\d,.])\d++(?:\.\d++){2,}+", lambda found: found[0].replace(".", " point ")),
    (
        r"(?<![\d,])\d++(?:,\d++)++",
        lambda found: found[0] if re.fullmatch(N, found[0]) else found[0].replace(",", ", "),
    ),
    (rf"(?<!\d){N}", say_counted),
]
RULES = [*ADDRESSES, *DATES, *AMOUNTS, *APART, *WORDS, *NUMBERS]
SIGNS = table(
    "R$ reais, & and, + plus, = equals, % percent, @ at, ° degrees, < less than, > greater than, × times, ÷ divided "
    "by, ± plus or minus, § section, # hash, € euros, £ pounds, ¥ yen, $ dollars, ² squared, ³ cubed, ≈ about, − "
    "minus, √ root of"
)
