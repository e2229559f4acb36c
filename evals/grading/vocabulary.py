"""The names in formulas: functions, constants, Greek letters, and LaTeX's accents and fonts."""

import re

_GREEK = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi
omicron rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi
Pi Sigma Upsilon Phi Psi Omega hbar ell nabla imath jmath odot oplus star dagger aleph Re Im
"""
SYMBOLS = frozenset(re.findall(r"\w+", _GREEK))
"""Commands that are symbols: Greek letters and the like."""
_TRIGONOMETRIC = ("sin", "cos", "tan", "sec", "csc", "cot")
_HYPERBOLIC = ("sinh", "cosh", "tanh")
_OTHER_FUNCTIONS = ("coth", "log", "ln", "lg", "exp", "sgn")
FUNCTIONS = {
    **{name: name for name in (*_TRIGONOMETRIC, *_HYPERBOLIC, *_OTHER_FUNCTIONS)},
    **{f"arc{name}": f"arc{name}" for name in _TRIGONOMETRIC},
    **{f"a{name}": f"arc{name}" for name in ("sin", "cos", "tan")},
    **{f"{arc}{name}": f"a{name}" for arc in ("a", "ar", "arc") for name in _HYPERBOLIC},
    **{"tg": "tan", "ctg": "cot", "arctg": "arctan", "cosec": "csc", "sign": "sgn"},
}
r"""Functions whose argument may follow without parentheses (\sin x), each with its usual name."""
INVERSES = {
    **{name: f"arc{name}" for name in _TRIGONOMETRIC},
    **{name: f"a{name}" for name in _HYPERBOLIC},
}
r"""What \sin^{-1} and the like mean."""
NUM_ARGUMENTS = {"factorial": 1, "binomial": 2, "floor": 1, "ceil": 1, "abs": 1}
OF_A_LIST = frozenset(["max", "min", "gcd", "lcm"])
CALLS = {
    **{name: name for name in (*NUM_ARGUMENTS, *OF_A_LIST)},
    **{"ceiling": "ceil", "Abs": "abs"},  # SymPy's names
}
"""Functions whose arguments stand in brackets, each with its usual name."""
FUNCTION_NAMES = frozenset([*FUNCTIONS, *CALLS, "sqrt", "cis", "det"])
"""Names that make another number of the number behind them."""
CONSTANTS = {"pi": "pi", "infty": "inf", "infinity": "inf", "inf": "inf"}
OF_TWO_ARGUMENTS = {"frac": "div", **dict.fromkeys(("binom", "dbinom", "tbinom"), "binomial")}
UNIT_LETTERS = frozenset("msghNJWVAKLFCT")
"""Letters that are units and no symbols if they are upright."""

VECTORS = frozenset(["mathbf", "vec", "boldsymbol", "bm", "hat", "widehat"])
"""Accents and fonts of vectors."""
ACCENTS = frozenset(
    ["bar", "dot", "ddot", "tilde", "overline", "widetilde", "underline", "overrightarrow"]
)
FONTS = frozenset(["mathcal", "mathbb", "mathscr", "mathfrak"])
"""Like accents, they make another symbol of a letter."""
UPRIGHT = frozenset(
    ["mathrm", "mathit", "rm", "operatorname", "operatorname*", "textit", "text", "mbox"]
)
"""Fonts of words, which do not make another symbol of a letter."""
