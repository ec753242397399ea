# SPDX-License-Identifier: Apache-2.0
"""Manual pages from the command line's parser, in the macros of groff_man(7).

Our own writer: argparse-manpage writes no NAME line that apropos(1) can index, a heading that groff and
mandoc do not read as one, and fills examples as if they were prose. Descriptions are paragraphs, a block of
examples stands in the epilog, as `rofs --help` shows them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Final

SECTION_OF_PROGRAM: Final = 1
SECTION_OF_VERBS: Final = 8
_SEE_ALSO = "veritysetup(8), systemd-dissect(1), systemd.image-policy(7), mount(8)"
_EXIT_CODES = "exit codes: "
_GLYPHS = {
    "\\": "\\e",
    "-": "\\-",
    "'": "\\(aq",
    '"': "\\(dq",
    "`": "\\(ga",
    "^": "\\(ha",
    "~": "\\(ti",
}


def pages(parser: argparse.ArgumentParser, version: str) -> dict[str, str]:
    """All pages, by file name: one of the program, and one of each verb.

    Args:
        parser: Of the whole program, complete for every verb.
        version: Of the program.
    """
    verbs, name = _verbs(parser), parser.prog
    names = {verb: f"{name}-{verb}" for verb in verbs.choices}
    summaries = {choice.dest: choice.help or "" for choice in verbs._choices_actions}  # noqa: SLF001 - not public
    epilog = parser.epilog or ""
    exit_status = _exit_status(next(line for line in epilog.splitlines() if line.startswith(_EXIT_CODES)))
    list_of_verbs = [".SH VERBS"]
    for verb, page in names.items():
        list_of_verbs += [".TP", f".BR {_text(page)} ({SECTION_OF_VERBS})", _text(summaries[verb])]
    found = {
        f"{name}.{SECTION_OF_PROGRAM}": [
            *_head(name, SECTION_OF_PROGRAM, version, "signed read-only images"),
            *_body(parser),
            *list_of_verbs,
            *exit_status,
            *_examples(epilog.partition("\n\n")[2]),
            *_see_also(_SEE_ALSO),
        ]
    }
    for verb, below in verbs.choices.items():
        found[f"{names[verb]}.{SECTION_OF_VERBS}"] = [
            *_head(names[verb], SECTION_OF_VERBS, version, summaries[verb]),
            *_body(below),
            *exit_status,
            *_examples(below.epilog),
            *_see_also(f"{name}({SECTION_OF_PROGRAM}), {_SEE_ALSO}"),
        ]
    return {page: "\n".join(lines) + "\n" for page, lines in found.items()}


def _verbs(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    found = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))  # noqa: SLF001 - not public
    return next(found)


def _head(name: str, section: int, version: str, summary: str) -> list[str]:
    return [
        f'.TH {_text(name.upper())} {section} "" "rofs {_text(version)}" "rofs"',
        ".SH NAME",
        # The form that lexgrog(1) indexes.
        f"{_text(name)} \\- {_text(summary)}",
    ]


def _body(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Synopsis, description, and the options in their groups."""
    yield from (".SH SYNOPSIS", *_synopsis(parser), ".SH DESCRIPTION", *_paragraphs(parser.description))
    for action in parser._actions:  # noqa: SLF001 - not public
        if isinstance(action, argparse._SubParsersAction) and action.metavar != "VERB":  # noqa: SLF001
            for below in action.choices.values():
                yield from (f'.SS "{_text(below.prog)}"', *_synopsis(below), *_groups(below, ""))
    yield from _groups(parser, ".SH OPTIONS")


def _synopsis(parser: argparse.ArgumentParser) -> Iterator[str]:
    usage = parser.format_usage().partition(":")[2].split()
    program = parser.prog.split()
    yield f".B {_text(' '.join(program))}"
    yield _text(" ".join(usage[len(program) :]))


def _groups(parser: argparse.ArgumentParser, heading: str) -> Iterator[str]:
    own = (parser._positionals.title, parser._optionals.title)  # noqa: SLF001 - not public
    for group in parser._action_groups:  # noqa: SLF001
        shown = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]  # noqa: SLF001
        shown = [action for action in shown if not isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001
        if not shown:
            continue
        if group.title not in own:
            yield from (f'.SS "{_text(group.title or "")}"', *_paragraphs(group.description))
        elif heading:
            yield heading
            heading = ""
        for action in shown:
            yield from (".TP", _flags(action), _text(parser._get_formatter()._expand_help(action)))  # noqa: SLF001


def _flags(action: argparse.Action) -> str:
    """`-f, --file FILE` in bold and italics."""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest)
    shown = f"\\fI{_text(str(value))}\\fR"
    if not action.option_strings:
        return shown
    flags = ", ".join(f"\\fB{_text(flag)}\\fR" for flag in action.option_strings)
    return flags if action.nargs == 0 else f"{flags} {shown}"


def _paragraphs(text: str | None) -> Iterator[str]:
    for index, paragraph in enumerate(re.split(r"\n\s*\n", (text or "").strip())):
        if index:
            yield ".PP"
        if paragraph:
            yield _text(" ".join(paragraph.split()))


def _exit_status(line: str) -> list[str]:
    lines = [".SH EXIT STATUS"]
    for code, meaning in re.findall(r"(\d+) ([^,]+)", line.removeprefix(_EXIT_CODES)):
        lines += [".TP", f".B {code}", _text(meaning)]
    return lines


def _see_also(pages: str) -> list[str]:
    return [".SH SEE ALSO", _text(pages)]


def _examples(epilog: str | None) -> Iterator[str]:
    if not epilog:
        return
    lines = epilog.strip().removeprefix("example:").strip("\n").splitlines()
    yield from (".SH EXAMPLES", ".EX", *map(_text, lines), ".EE")


def _text(text: str) -> str:
    """Text as one line of roff: no escape, no request, and signs that can be copied to a shell.

    Source: groff_char(7), man-pages(7) "Generating optimal glyphs".
    """
    escaped = "".join(_GLYPHS.get(character, character) for character in text)
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
