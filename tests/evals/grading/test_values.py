# ruff: noqa: E501  # tables of pairs
r"""The rules by which mathematical answers are equal, and the rates at which they err."""

import threading

import pytest

from evals.grading import compare, math_equal
from evals.grading.formula_parser import parse
from tests.benchmarks import grading as benchmark

EQUAL = r"""
numbers:      1,234 = 1234; 1{,}234 = 1234; 1\,000\,000 = 1000000; 1 000 = 1000; 023 = 23
              .5 = 0.5; -\frac{1}{2} = \frac{-1}{2}; 0.\overline{3} = \frac13; 0.1\overline{6} = 1/6
              2\frac{1}{3} = \frac73; 1 4/5 = 1.8; 2\cdot10^{-3} = 0.002; 1e-3 = 0.001
              50\% = 0.5; 50\% = 50; 3.1415927 = \pi; 110_2 = 110_{2}; -37_8 = -37_{8}
              (110)_2 = 110_2; 110_{\text{two}} = 110_2; 2a_{16} = 2A_{16}; {3 \over 4} = 0.75; \color{red}{5} = 5; \bf 5 = 5; \sim 5 = 5
              \frac{14}{3} \approx 4.67 = \frac{14}{3}; \frac{14}{3} \approx 4.67 = 4.67; \frac72\text{ or }3.5 = \frac72; \frac12\text{ or }50\% = 0.5
              1'000'000 = 1000000; 1_000_000.5 = 1000000.5; 1.234,56 = 1234.56; 12 345,67 = 12345.67; 12.345.678 = 12345678
              0{,}25 = 0.25; 1,00,000 = 100000; -1.234,5 € = -1234.5; 1101_{(2)} = 1101_2; 1101₂ = 1101_2; 1101 \text{ (base 2)} = 1101_2
              \textit{5} = 5; \underline{5} = 5; 42nd = 42; 10^{th} = 10; 1^{\text{st}} = 1; 42\text{nd} = 42; \text{\$1,200} = 1200
              3.14... = 3.14; 42\\ = 42; \\frac{1}{2} = \frac12; 5... = 5
words:        one-third = \frac13; a dozen = 12; five = 5; negative five = -5; twenty-five = 25; 5 million = 5000000; 5 dozen = 60
              one hundred and twenty = 120; the circle = \text{circle}; A, B, and D = A,B,D; \text{I, II and III} = I, II, III; A and B = \text{A, B}; 5个 = 5; 3 lakh = 300000
              \textbf{(C)}\ 5 = 5; \textbf{(C) }5 = \text{(C)}; (C) 5 = 5; C. 5 = (C); \text{C) } 5 = 5; 42 (apples) = 42
              \text{Answer: } 42 = 42; x₁ = x_1; H₂O = H_2O
              \text{Yes} = yes; n \text{ is odd} = n is odd; 4:30 PM = \text{4:30 p.m.}
units:        5 = 5\text{ cm}; 5 cm = 5\text{ cm}; 500\text{ cm} = 5\text{ m}; \$5 = 5\text{ dollars}
              36\text{ km/h} = 10\text{ m/s}; 25 square feet = 25\text{ ft}^2; 30^\circ = 30
              3\text{ h }5\text{ min} = 185\text{ minutes}; 9.8\mathrm{~m}/\mathrm{s}^2 = 9.8 m/s^2
              300 K = 300; 6 m = 6; 12 cm² = 12; 36π cm^2 = 36\pi; 9.8\ \mathrm{m\,s^{-2}} = 9.8\text{ m/s}^2
              60 \frac{m}{s} = 60; 5\,\mu\text{m} = 5\times10^{-6}\text{ m}; 5\ \text{k}\Omega = 5000\ \Omega; 25°C = 25; £12 = 12; \text{Rs. }500 = 500; 5 € = €5; 5\text{€} = 5; 5\euro = 5; 25℃ = 25^\circ C
              \frac{\pi}{3} = 60^\circ; 60^\circ = \frac{\pi}{3}\text{ rad}; 5 N·m = 5; 30-8p\text{ dollars} = 30-8p
formulas:     2*x**2 = 2x^2; 2^k2^{-n} = 2^{k-n}; x^2-1 = (x-1)(x+1); tv = v t; 3m+3m = 6m; 2\sin x\cos x = \sin 2x; \ln x^2 = 2\ln x
              √3/2 = \frac{\sqrt{3}}{2}; \sqrt[3]{x^2} = x^{2/3}; 1/2x = \frac{x}{2}
              (-1)^{n+1} = -(-1)^n; 5! = 120; \binom52 = 10; e^{i\pi} = -1; |x-1| = |1-x|
              \frac{E_1+2E_2}{3} = \frac13E_{1}+\frac23E_{2}; v^2_0 = v_0^2; mc^2 = c^2m
              \log_25 = \log_2(5); \log_{10} 100 = 2; \operatorname{arctg} 2 = \arctan 2
              3\mathbf{j}+2\mathbf{i} = 2\mathbf{i}+3\mathbf{j}; \cos60^\circ = \frac12
equations:    y=2x+1 == 2x-y+1=0; x^2+y^2=4 == x^2+y^2-4=0; 2x+1 == y=2x+1; f(x)=2x == y=2x
              \frac{x^2}{4}+y^2=1 == x^2+4y^2=4; \frac{dy}{dx}=2x == \frac{dy}{dx}=x+x; 2+3=5 == 5
              \log_2 8=3 == 3; f(x)=x\text{ for all }x == f(x)=x; \begin{cases}x=1\\y=2\end{cases} == (1,2); \begin{aligned}x&=2+3\\&=5\end{aligned} == 5
named:        x=5 == 5; x=1,y=2 == (1,2); y=2,x=1 == x=1,y=2; x=1\text{ or }x=2 == 1,2
              x=\pm3 == 3,-3; (x,y)=(1,2) == (1,2); P(A)=0.5 == \frac12; P(X=2)=0.5 == \frac12; f^{-1}(x)=2x == 2x; f(-2)=5 == 5; \cos A=\frac35 == \frac35; \angle ABC=60^\circ == 60
sets:         \{2,1\} = \{1,2\}; 2,1 = 1,2; 1,1,2 = 2,1,1; 1\pm\sqrt2 = 1+\sqrt2,1-\sqrt2
              [1,2) == 1\le x<2; x>3 == (3,\infty); \{x\mid x>3\} == x>3; x\ne1 == (-\infty,1)\cup(1,\infty)
              x<1\text{ or }x>2 == (-\infty,1)\cup(2,\infty); \mathbb{R}\setminus\{1\} == x\ne1
              \pm1, \pm2 = -2,-1,1,2; (-\infty,0), (1,2) == (-\infty,0)\cup(1,2); \mathbb{R} - \{0\} = \mathbb{R}\setminus\{0\}; (-oo, 2) = (-\infty,2)
              \text{all real numbers} = \mathbb{R}; \text{No solution} = \emptyset; \text{no real solutions} = \emptyset
              ]1,2] = (1,2]; [0,1[\cup]1,2] = [0,1)\cup(1,2]; ]1;2[ = (1,2); x\in]-\infty,3[ = (-\infty,3); [1, 2, 3] = 1,2,3; 1,2,... = 1,2,\ldots
              |x|<2 == (-2,2); |x-1|\ge3 == x\le-2\text{ or }x\ge4; x>0 \land x<5 == (0,5); x=1 ∧ y=2 == (1,2); y>0 \land x>0 = x>0, y>0; p \wedge q = p ∧ q
              3>x>-2 == (-2,3); \emptyset = \varnothing; (1,2)\text{ and }(3,4) = (3,4),(1,2)
matrices:     \begin{pmatrix}1&0.5\\3&4\end{pmatrix} = \begin{bmatrix}1&\frac12\\3&4\end{bmatrix}
              [[1,2],[3,4]] = \begin{pmatrix}1&2\\3&4\end{pmatrix}; \langle1,2\rangle = (1,2)
              \left(\begin{matrix}1\\2\end{matrix}\right) = (1,2); \left[\begin{smallmatrix}1\\2\end{smallmatrix}\right] = (1,2)
              \begin{pmatrix}1\cr2\end{pmatrix} = (1,2); 2\begin{pmatrix}1\\2\end{pmatrix} = (2,4); -\begin{pmatrix}1\\2\end{pmatrix} = (-1,-2)
              \left\{\begin{array}{l}x=1\\y=2\end{array}\right. == (1,2)
              \begin{pmatrix}1\\2\end{pmatrix} = (1,2); 3 : 2 = 3:2
"""

DIFFERENT = r"""
numbers:      1.0000001 = 1; 1000000.5 = 1000000; 1234567.8 = 1234568; 0.333 = \frac13; -5 = 5; 5! = 5
              6.63\times10^{-34} = 6.6e-27; \frac{1}{2006!} = \frac{1}{2004!}; 2^{-98} = 2^{-99}
              10^{30}+1 = 10^{30}; 110_2 = 110_3; 110_2 = 110; 500\% = 0.5; 21:55 = 21:50
              \frac{14}{3} \approx 4.72 = \frac{14}{3}; \frac{14}{3} \approx 4.67 = 4.6; 3\text{ or }3.5 = 3; 110_{\text{two}} = 110_3; (110)_2 = 110; a_1 = A_1; b_2 = B_2; \sqrt2 \approx 1.5 = \sqrt2; \log_25 = \log_{25}x
              2^{200}\sqrt2+1 = 2^{200}\sqrt2+3; 3:2 = 2:3; (0.0000001,1) = (0.0000004,1)
              1.234,56 = 1234.57; 1,00,000 = 10000; 0{,}25 = 25; 2.000.000 = 2; 1_000 = 1; 1101 \text{ base } 2 = 1101; 42nd = 2
              3.14... = 3.15; 1,2,3,... = 1,2,3; 1101₂ = 1101_3; 5^{t} = 5
words:        Elevyn = Evelyn; (C) 5 = 6; C. 5 = (D); (C) 5 = (D); 42 (km) = 42\text{ cm}; 5 (not) = 5; 5 (times pi) = 5; 5 (negative) = 5; 5 (mod p) = 5; not 5 = 5; twice 5 = 5; at least 5 = 5; less than 5 = 5; half of 5 = 5; 5 or 6 = 5
              5 million = 5; negative 5 = 5; 5 squared = 5; between 5 and 6 = 5; June 20 = 20
              ln 5 = 5; sqrt 5 = 5; \operatorname{arctan} 2 = 2; \operatorname{cis} 5 = 5; 5万 = 5; \textbf{(C)}\ 5 = \text{(D)}; a circle = \text{ellipse}
              n \text{ is odd} = n \text{ is even}; \text{I and II} = \text{I and III}; A and B = A; 4:30 AM = \text{4:30 p.m.}; 1.5 km = 15 km
units:        5 € = \$5; 37℃ = 37℉; 5\text{ MW} = 5\text{ mW}; 5\text{ km} = 5\text{ cm}; 5\text{ kg} = 5\text{ m}; 5\text{ ft} = 5\text{ ft}^2; 6 = 6m
              3\text{ h }5\text{ min} = 3; \$5 = 5\text{ cents}; 37^\circ C = 37^\circ F; v = v t
              5 miles north = 5\text{ miles south}; 45\text{ units}^4 = 45\text{ units}^2; 6 = 6 m; 6 x = 6; 6 m = 6\text{ km}; 1 + 2 m = 3
              30-8p\text{ dollars} = 30; 5 minus x = 5; 5 2x apples = 5; 5/x dollars = 5; 60^\circ = 60\pi; 300 K = 300\text{ m}
formulas:     f(g(x)) = g(f(x)); 2 = 2x-1; x+5 = 5; 5a = 5; |x| = x; \sqrt{x^2} = x; a_1 = a_2; x' = x; \bar{x} = x
              \sin^{-1}x = \frac{1}{\sin x}; \log_2 3 = \log_3 2; (-1)^n = 1; n! = n; I(0) = 0
              \int_0^1 x dx = 1; \sum_{k=1}^n k = n; \lim_{x\to0}x = 0; 2i = 2\mathbf{i}; \foo{5} = 5
              \frac{5}{} = 5; (5 = 5; 5) = 5; 5+ = 5; 5 6 = 5; \lfloor\log_2 n\rfloor+1 = 2
              \begin{cases}2x&x>0\\0&x\le0\end{cases} = \begin{cases}x&x>0\\0&x\le0\end{cases}
equations:    y=2x+1 == y=2x-1; 2x=10 == 5; x^2=25 == 5; x+y=5 == 5; x^2-4x+5=0 == 0; |x|=-2 == |x|=-1
              \frac{dy}{dx}=3x == \frac{dy}{dx}=2x; 0.56=36 == 0.56=56; x\equiv3\pmod5 == 3
named:        x=5 == y=5; P(X=2)=0.5 == P(X=3)=0.5; f(x+1)=2x == f(x)=2x; \cos x=1 == 1; x=1,y=2 == x=2,y=1; x=1,y=2 == (2,1); x=1,y=2 == 1; x>5 == 5; x\ne5 == 5
sets:         (2,1) = (1,2); [1,2] = (1,2); \{1,2\} = (1,2); 1,1,2 = 1,2; 1,2 = 1; \pm3 = 3
              \pm1,2 = 1,2; (0,1),(2,3) == (0,1)\cup(2,4); \text{all real numbers} = \emptyset; x\ge5 == x>5; \{x\mid x<3\} == \{x\mid x>3\}; x<1\text{ or }x>3 == 1<x<3; \{0\} = \emptyset
              ]1,2] = [1,2]; ]1,2[ = [1,2]; [1,2] = 1,2; [3,2,1] = 1,2,3; |x|<2 == |x|\le2; |x|<2 == |y|<2; |x|>1 == x>1; |x|<-2 == \emptyset
              p ∧ q = p \lor q; x>0 \land x<5 == x>0; x>0 ∧ y>1 = x>0, y>0
              (0,1)\cup(2,3) = (0,1)\cup(2,4); (1,2),(3,4) = (1,2),(4,3); k\pi,k\in\mathbb{Z} = k\pi
matrices:     \begin{pmatrix}1&2\\3&4\end{pmatrix} = \begin{pmatrix}1&3\\2&4\end{pmatrix}
              \begin{pmatrix}1&2\end{pmatrix} = 1; 2\begin{pmatrix}1\\2\end{pmatrix} = (1,2); -\begin{pmatrix}1\\2\end{pmatrix} = (1,2)
"""


def pairs(table: str) -> list[tuple[str, str]]:
    r"""Split lines of "kind: a = b; ..."; "==" separates equations."""
    found = []
    for line in table.strip().splitlines():
        for pair in line[14:].split("; "):
            one, _, other = pair.partition(" == " if " == " in pair else " = ")
            found.append((one.strip(), other.strip()))
    return found


@pytest.mark.parametrize(("one", "other"), pairs(EQUAL))
def test_equal_values(one, other) -> None:
    assert math_equal(f"\\boxed{{{one}}}", other)


@pytest.mark.parametrize(("one", "other"), pairs(DIFFERENT))
def test_different_values(one, other) -> None:
    assert not math_equal(f"\\boxed{{{one}}}", other)
    assert math_equal(f"\\boxed{{{other}}}", other)


def test_what_cannot_be_parsed_is_compared_as_text_and_says_so() -> None:
    integral = r"\int_0^1 f(x)\,dx"
    assert compare(rf"\boxed{{{integral}}}", integral.replace(r"\,", "")).as_text
    assert compare(r"\boxed{\text{Evelyn}}", "Evelyn").equal
    assert not compare(r"\boxed{2}", r"\frac{4}{2}").as_text
    assert compare(r"\boxed{2}", integral) == compare(r"\boxed{1}", integral)


@pytest.mark.parametrize(
    "text", ["5)", "(5", "5+", "5 6", r"\foo{5}", r"\frac{5}{}", "x^", "5;", "=5"]
)
def test_a_text_is_a_formula_as_a_whole_or_not_at_all(text) -> None:
    assert parse("5") is not None
    assert parse(text) is None


def test_threads_do_not_disturb_each_other() -> None:
    wrong = []

    def compare_often(number: int) -> None:
        for step in range(20):
            gold = rf"2^{{{200 + step}}}\sqrt{{{number + 2}}} + 1"
            right = math_equal(
                rf"\boxed{{1 + \sqrt{{{number + 2}}}\cdot 2^{{{200 + step}}}}}", gold
            )
            if not right or math_equal(rf"\boxed{{{gold[:-1]}2}}", gold):
                wrong.append(gold)

    threads = [threading.Thread(target=compare_often, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


SAMPLE = [
    *("18", "1234", "-7", "0.25", r"\frac{3}{4}", r"-\frac{2}{3}", r"\frac{5\pi}{6}", "1.5e-7"),
    *(r"3\sqrt{2}", r"2+\sqrt{3}", r"\sqrt[3]{4}", "6.02\\times 10^{23}", "x^2-4x+3", "2x+1"),
    *(
        "y = 2x - 1",
        r"\frac{x}{x+1}",
        "(3,-4)",
        "(1,2,5)",
        "[-2,7)",
        r"(-\infty,3]",
        "2, 5",
        "-1, 4",
    ),
    *(r"\{1,2,6\}", r"(-\infty,2)\cup(5,\infty)", r"12\text{ cm}", r"90^\circ", r"\text{Evelyn}"),
    *(r"\begin{pmatrix} 1 & 2 \\ -3 & 4 \end{pmatrix}", "x^2+y^2=25", r"2\pi r^2", r"40\%"),
    *(
        r"m c^2(\gamma-1)",
        r"\frac{1}{2} m v_0^2",
        "1101_2",
        "5!",
        r"\binom{7}{3}",
        "2+3i",
        r"1\frac{1}{2}",
    ),
    *(r"\frac{n(n+1)}{2}", r"-3 \le x < 8", r"\ln 2", r"e^{-2t}", "10000", "123456", r"\pi - 3"),
]


def test_the_rates_of_errors_hold_on_a_sample() -> None:
    row = benchmark.measure("sample", SAMPLE)
    assert row.faults() == [], row.misjudged
    assert row.twins > 100 and sum(row.wrong.values()) > 150


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (lambda text, gold: text[10:-1] == gold, "twins are refused"),
        (lambda text, gold: set(text) & set(gold) & set("123456789"), "wrong answers are accepted"),
    ],
)
def test_the_rates_show_a_broken_grader(monkeypatch, broken, fault) -> None:
    monkeypatch.setattr(benchmark, "math_equal", broken)
    assert any(fault in each for each in benchmark.measure("sample", SAMPLE).faults())
