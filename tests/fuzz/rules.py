"""Rules: a text compiles or is refused, and what compiles is evaluated or refused, within what a turn can bear."""

from __future__ import annotations

from router.config import RuleConfig
from router.rules import Rule, RuleRefused

FEATURES = ("x", "y", "amount", "a")
VALUES = (0, 1, -1, 2**63 - 1, -(2**63), 1.5, float("nan"), float("inf"), True)


def seeds() -> list[bytes]:
    return [
        b"amount > 900.0 && x < 3",
        b"x in [1, 2, 3] || !(y == 2.0)",
        b"x > 0 ? y / x > 2 : a % 7 == 3",
        b"double(x) * 1.5e3 >= -2.0 // that much",
        b"{'a': 1}['a'] == int(x) && size('abc') == 3",
        b"'a' + \"b\" == r'ab' || b'\\xff' == bytes('x')",
        b"uint(a) - 2u > 1u || string(a).startsWith('1')",
        b"duration('1h') > duration('30s') && timestamp('2024-01-01T00:00:00Z').getFullYear() == 2024",
        b"has({'a': 1}.a) && type(x) == int && [x, y][0] == x",
    ]


def run(content: bytes) -> None:
    text = content.decode(errors="replace")[:4096]
    try:
        rule = Rule(RuleConfig(name="fuzzed", when=text, answer={"y": 0.0}))
    except RuleRefused:
        return
    for value in VALUES:
        try:
            said = rule.holds(dict.fromkeys(rule.variables, value))
        except RuleRefused:
            continue
        assert said in (True, False)
