"""docs/troubleshooting.md tells every exit code, its error and meaning, as errors.py has them."""

from __future__ import annotations

import re

from svit_deploy import errors
from tests.docs.pages import text_of

PAGE = text_of("docs/troubleshooting.md")
ROWS = {
    int(cells[0]): cells[1:]
    for line in PAGE.splitlines()
    if (cells := [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])[0].isdigit()
}
CODES = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
CLASSES = {
    error.exit_code: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.SvitDeployError)
}


def test_every_code_has_a_row():
    assert ROWS.keys() == CODES
    assert list(ROWS) == sorted(ROWS)


def test_rows_name_the_errors():
    for code, (error, *_) in ROWS.items():
        assert error == (f"`{CLASSES[code].__name__}`" if code in CLASSES else "–")


def test_meanings_are_those_of_the_docstrings():
    """The first words of each class say what its row says."""
    for code, error in CLASSES.items():
        sentence, _, told = (error.__doc__ or "").partition("(exit code ")
        if error is not errors.SvitDeployError:
            assert int(told.partition(")")[0]) == code
            assert words(ROWS[code][1]) & words(sentence), error


def test_failures_have_a_cause_and_a_cure():
    for code in CLASSES:
        _, meaning, cause, cure = ROWS[code]
        assert meaning and cause and cure


def words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 5}
