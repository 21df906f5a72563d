"""The language of `report --where`: `person > 0.05 and (car > 0 or not confidence >= 80%)`.

Names stand for a class's share of the photo, 0 to 1, or for the photo's mean `confidence`. Names
with other characters than letters, digits, _ and - are written in double quotes. Nothing of an
expression is run as code.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.client.errors import UsageError

Values = Mapping[str, float]  # by name, in lower case
Test = Callable[[Values], bool]

CONFIDENCE = "confidence"
TOKEN = re.compile(
    r'\s*(?:(?P<sign>>=|<=|==|!=|[<>=()])|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?%?)|"(?P<quoted>[^"]*)"'
    r"|(?P<word>[^\W\d][\w-]*))"
)
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
LONGEST = 2000  # characters: each parenthesis is a call of the parser
DEEPEST = 50  # parentheses and `not`


def parse(text: str, names: list[str]) -> Test:
    """Return the test of an expression about these classes; raises UsageError."""
    if len(text) > LONGEST:
        raise UsageError(f"--where has {len(text)} characters, the limit is {LONGEST}")
    parser = _Parser(text, {name.lower() for name in names} | {CONFIDENCE}, names)
    test = parser.either()
    if parser.kind:
        raise parser.error("expected `and`, `or` or the end")
    return test


@dataclass
class _Parser:
    """Reads one token after another."""

    text: str
    known: set[str]
    names: list[str]
    at: int = 0  # where the token starts
    end: int = 0
    kind: str = ""  # of the token; empty at the end
    value: str = ""
    depth: int = 0

    def __post_init__(self) -> None:
        self._next(0)

    def _next(self, start: int) -> None:
        found = TOKEN.match(self.text, start)
        self.at, self.kind, self.value = start, "", ""
        if found is not None:
            self.end = found.end()
            self.kind = found.lastgroup or ""
            self.value = found[self.kind]
            if self.kind == "word" and self.value.lower() in {"and", "or", "not"}:
                self.kind, self.value = "sign", self.value.lower()
        elif self.text[start:].strip():
            raise self.error("cannot be read")

    def error(self, what: str) -> UsageError:
        """Return the error at the present token."""
        rest = self.text[self.at :].strip() or "the end"
        return UsageError(
            f"--where {self.text!r}: at {rest!r}: {what}; write it like 'person > 0.05 and not "
            f"(car > 10% or confidence < 0.6)'. The names are {CONFIDENCE}, "
            f"{', '.join(self.names) or 'no class'}"
        )

    def take(self, *values: str) -> str:
        """If the token is one of these, return it and read the next; else return an empty text."""
        if self.kind != "sign" or self.value not in values:
            return ""
        taken = self.value
        self._next(self.end)
        return taken

    def either(self) -> Test:
        tests = [self.all_of()]
        while self.take("or"):
            tests.append(self.all_of())
        return lambda values: any(test(values) for test in tests)

    def all_of(self) -> Test:
        tests = [self.one()]
        while self.take("and"):
            tests.append(self.one())
        return lambda values: all(test(values) for test in tests)

    def one(self) -> Test:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error(f"more than {DEEPEST} parentheses and `not`")
        try:
            return self._one()
        finally:
            self.depth -= 1

    def _one(self) -> Test:
        if self.take("not"):
            inner = self.one()
            return lambda values: not inner(values)
        if self.take("("):
            inner = self.either()
            if not self.take(")"):
                raise self.error("expected )")
            return inner
        return self.comparison()

    def comparison(self) -> Test:
        name = self.value.lower()
        if self.kind not in {"word", "quoted"} or name not in self.known:
            raise self.error("expected a class of the results, or confidence")
        self._next(self.end)
        sign = self.take(*COMPARE)
        if not sign:
            raise self.error(f"expected one of {' '.join(COMPARE)}")
        if self.kind != "number":
            raise self.error("expected a number, such as 0.05 or 5%")
        number = float(self.value.removesuffix("%")) / (100 if self.value.endswith("%") else 1)
        if number > 1:
            raise self.error("shares and confidence are from 0 to 1, or from 0% to 100%")
        self._next(self.end)
        compare = COMPARE[sign]
        # Every comparison is false for a photo whose confidence is unknown.
        return lambda values: name in values and compare(values[name], number)
