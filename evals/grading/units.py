"""Words around a number: units, scales, signs, and words that change what the number says."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

_BASE = {
    # One line per dimension: name of the base unit, then factor and names of each unit.
    "length": """1 m meter metre; 1/1000 mm millimeter millimetre; 1/100 cm centimeter centimetre;
        1/10 dm decimeter decimetre; 1000 km kilometer kilometre; 0.0254 in inch inches;
        0.3048 ft foot feet; 0.9144 yd yard; 1609.344 mi mile; 1/1000000 micrometer micrometre;
        1/1000000000 nm nanometer nanometre""",
    "mass": """1 kg kilogram; 1/1000 g gm gram; 1/1000000 mg milligram; 0.45359237 lb lbs pound;
        0.028349523125 oz ounce; 1000 ton tonne""",
    "time": """1 s sec second; 60 min mins minute; 3600 h hr hrs hour; 86400 day; 604800 week;
        1/1000 ms millisecond; 1/1000000 microsecond""",
    "month": "1 month; 12 year yr yrs; 120 decade; 1200 century centuries",
    "current": "1 ampere amp; 1/1000 mA",
    "temperature": "1 kelvin",
    "celsius": "1 celsius",
    "fahrenheit": "1 fahrenheit",
    "amount": "1 mol mole",
    "angle": "1 degree deg; 1/60 arcminute; 1/3600 arcsecond",
    "radian": "1 radian rad",
    "dollar": "1 dollar usd; 1/100 cent",
    "euro": "1 euro eur",
    "rupee": "1 rupee",
    "yuan": "1 yuan",
    "sterling": "1 sterling gbp; 1/100 pence",
    "unit": "1 unit",
    "information": "1 bit; 8 byte",
    "morning": "1 am",
    "afternoon": "1 pm",
}
# Units that are products: name -> (factor in base units, powers of dimensions).
_DERIVED: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "liter litre l": ("1/1000", {"length": 3}),
    "ml milliliter millilitre": ("1/1000000", {"length": 3}),
    "gallon gal": ("0.003785411784", {"length": 3}),
    "acre": ("4046.8564224", {"length": 2}),
    "hectare ha": ("10000", {"length": 2}),
    "mph": ("0.44704", {"length": 1, "time": -1}),
    "kph kmh": ("1/3.6", {"length": 1, "time": -1}),
    "newton N": ("1", {"mass": 1, "length": 1, "time": -2}),
    "joule J": ("1", {"mass": 1, "length": 2, "time": -2}),
    "kJ kilojoule": ("1000", {"mass": 1, "length": 2, "time": -2}),
    "erg": ("1/10000000", {"mass": 1, "length": 2, "time": -2}),
    "eV": ("1.602176634e-19", {"mass": 1, "length": 2, "time": -2}),
    "keV": ("1.602176634e-16", {"mass": 1, "length": 2, "time": -2}),
    "MeV": ("1.602176634e-13", {"mass": 1, "length": 2, "time": -2}),
    "GeV": ("1.602176634e-10", {"mass": 1, "length": 2, "time": -2}),
    "watt W": ("1", {"mass": 1, "length": 2, "time": -3}),
    "kW kilowatt": ("1000", {"mass": 1, "length": 2, "time": -3}),
    "kWh": ("3600000", {"mass": 1, "length": 2, "time": -2}),
    "pascal Pa": ("1", {"mass": 1, "length": -1, "time": -2}),
    "kPa": ("1000", {"mass": 1, "length": -1, "time": -2}),
    "hertz Hz": ("1", {"time": -1}),
    "kHz": ("1000", {"time": -1}),
    "MHz": ("1000000", {"time": -1}),
    "volt V": ("1", {"mass": 1, "length": 2, "time": -3, "current": -1}),
    "coulomb": ("1", {"time": 1, "current": 1}),
    "ohm \\Omega": ("1", {"mass": 1, "length": 2, "time": -3, "current": -2}),
    "A": ("1", {"current": 1}),
    "K": ("1", {"temperature": 1}),
    "L": ("1/1000", {"length": 3}),
    "C": ("1", {"celsius": 1}),
    "F": ("1", {"fahrenheit": 1}),
}
_PREFIXED = frozenset(["m", "g", "s", "N", "J", "W", "V", "A", "K", "L", "Pa", "Hz", "eV", "mol"])
_PREFIXED |= {"\\Omega"}
_PREFIXES = {
    **{"p": Fraction(1, 10**12), "n": Fraction(1, 10**9), "u": Fraction(1, 10**6)},
    **{"m": Fraction(1, 1000)},
    **{"c": Fraction(1, 100), "k": Fraction(1000), "M": Fraction(10**6), "G": Fraction(10**9)},
}
SCALES = {
    **{"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9},
    **{"trillion": 10**12, "quadrillion": 10**15, "lakh": 10**5, "crore": 10**7},
    **{"dozen": 12, "dozens": 12},
}
_CHANGING = """
not no none never neither nor isn't isnt cannot can't cant without except excluding but or than
least most above below under over beyond exceeds exceeding between nearly almost half halves third
thirds double twice triple thrice quadruple squared cubed root factorial plus power inverse
reciprocal opposite negation mod modulo base tenths hundredths thousandths maximum minimum january
february march april may june july august september october november december monday tuesday
wednesday thursday friday saturday sunday unknown undefined impossible false wrong incorrect
"""
CHANGING = frozenset(re.findall(r"\S+", _CHANGING))
"""Words that make another quantity, or none, of a number beside them."""
_CHANGING_BEFORE = """
less fewer more greater larger smaller up quarter fifth tenth times minus square cube logarithm log
sine cosine
"""
CHANGING_BEFORE = CHANGING | frozenset(re.findall(r"\S+", _CHANGING_BEFORE))
"""The same, of words before a number."""
_OPPOSITES = """
north south east west left right up down increase decrease profit loss gain more less fewer older
younger faster slower higher lower clockwise counterclockwise anticlockwise odd even before after
early late ahead behind deep high bc ad bce ce
"""
OPPOSITES = frozenset(re.findall(r"\S+", _OPPOSITES))
"""Words that must be the same in both answers if both have any."""
_NEGATIVE = frozenset(["negative", "minus"])
_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
"""
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBER_WORDS = {word: value for value, word in enumerate(re.findall(r"\S+", _NUMBERS))}
NUMBER_WORDS.update({word: 10 * value for value, word in enumerate(_TENS, start=2)})
PARTS_IN_WORDS = {
    **{"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6},
    **{"seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "hundredth": 100},
}
_CURRENCIES = {"$": "dollar", "€": "euro", "¥": "yuan", "₹": "rupee", "£": "sterling"}
_PART = re.compile(
    r"\s*(?:(?P<divide>/|per\b)|(?P<times>\\cdot|\*|·|-(?=[A-Za-z]))"
    r"|(?P<shape>square|sq|cubic|cu)\b\.?|(?P<name>[A-Za-z]*\\Omega|[A-Za-z]+)\.?"
    r"(?:\s*(?:\^\s*\{?\s*(?P<power>-?\d)\s*\}?|(?P<digit>[23])(?!\d)))?)"
)


@dataclass(frozen=True)
class Unit:
    """A unit in base units: a factor, and the powers of its dimensions."""

    factor: Fraction
    powers: frozenset[tuple[str, int]]


def _table() -> dict[str, tuple[Fraction, dict[str, int]]]:
    known: dict[str, tuple[Fraction, dict[str, int]]] = {}
    for dimension, listed in _BASE.items():
        for line in listed.split(";"):
            factor, *names = line.split()
            for name in names:
                known[name] = (Fraction(factor), {dimension: 1})
    for names_text, (factor, powers) in _DERIVED.items():
        above, _, below = factor.partition("/")
        for name in names_text.split():
            known[name] = (Fraction(above) / Fraction(below or 1), dict(powers))
    return known


UNITS = _table()


def find(name: str) -> tuple[Fraction, dict[str, int]] | None:
    """Return factor and dimensions of a unit by its name, in singular or plural."""
    bare = name.replace(".", "")
    for each in (bare, bare.lower(), bare.lower().removesuffix("s")):
        if each in UNITS and (len(each) > 1 or each == bare):
            return UNITS[each]
    known = UNITS.get(bare[1:]) if bare[1:] in _PREFIXED and bare[0] in _PREFIXES else None
    return (known[0] * _PREFIXES[bare[0]], known[1]) if known else None


def parse(text: str, whole: bool = False) -> Unit | None:
    """Parse units such as "m/s^2", "square feet" or "dollars per hour"; None if one is unknown.

    Words after the last unit that is known are ignored ("cm long"), unless `whole` is true: then
    there must be none.
    """
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text.strip())
    at, sign, shape, factor = 0, 1, 1, Fraction(1)
    powers: dict[str, int] = {}
    while found := _PART.match(text, at):
        at = found.end()
        if found["divide"]:
            sign = -1
        elif found["shape"]:
            shape = 2 if found["shape"].startswith("s") else 3
        elif found["name"]:
            known = find(found["name"])
            is_last = not text[at:].strip()
            if known is None or (found["name"] == "in" and not is_last):
                at = found.start()
                break
            power = sign * shape * int(found["power"] or found["digit"] or 1)
            factor *= known[0] ** power
            for dimension, times in known[1].items():
                powers[dimension] = powers.get(dimension, 0) + times * power
            shape = 1
    if not powers or (whole and text[at:].strip()):
        return None
    return Unit(factor, frozenset((name, times) for name, times in powers.items() if times))


def currency(symbol: str) -> Unit | None:
    """Return the unit of a currency symbol."""
    name = _CURRENCIES.get(symbol)
    return Unit(UNITS[name][0], frozenset(UNITS[name][1].items())) if name else None


def number_in_words(words: list[str]) -> tuple[int, int] | None:
    """Return the value of a number in words at the start of `words`, and how many it takes."""
    total, current, taken = 0, 0, 0
    for word in words:
        parts = word.split("-")
        if all(part in NUMBER_WORDS for part in parts):
            current += sum(NUMBER_WORDS[part] for part in parts)
        elif word == "and" and taken and current and current % 100 == 0:
            pass
        elif word in SCALES and taken and not word.startswith("dozen"):
            if SCALES[word] == 100:
                current *= 100
            else:
                total, current = total + current * SCALES[word], 0
        else:
            break
        taken += 1
    return (total + current, taken) if taken else None


def is_negative(words: list[str]) -> bool:
    """Return whether the last word before a number makes it negative."""
    return bool(words) and words[-1] in _NEGATIVE
