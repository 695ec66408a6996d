"""The rules of the house that no linter knows, as functions from a source text to complaints.

Which files they are applied to, and proof that they can complain, is in ``test_tidy.py``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

MODULE_LINES = 600
FUNCTION_LINES = 70
PARAMETERS = 8

_BANNED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
_BARE_IGNORE = re.compile(r"#\s*type:\s*ignore(?!\[[a-z0-9, -]+\]\s+#?\s*\S)")
_REQUIREMENT = re.compile(r'^\s*"?([A-Za-z0-9][^"#]*?)"?,?\s*(?:#.*)?$')


def size_complaints(source: str) -> Iterator[str]:
    """Modules, functions and parameter lists beyond what one can hold in the head."""
    lines = source.count("\n") + 1
    if lines > MODULE_LINES:
        yield f"{lines} lines, more than {MODULE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {length} lines, more than {FUNCTION_LINES}"
            count = len(_parameters(node))
            if count > PARAMETERS:
                yield f"line {node.lineno}: {node.name} has {count} parameters, more than {PARAMETERS}"


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def docstring_complaints(source: str) -> Iterator[str]:
    """A module says what lives in it."""
    if not ast.get_docstring(ast.parse(source)):
        yield "no module docstring"


def banned_word_complaints(source: str) -> Iterator[str]:
    """Nothing unfinished is committed."""
    for number, line in enumerate(source.splitlines(), 1):
        match = _BANNED.search(line)
        if match:
            yield f"line {number}: {match[0]}"


def catch_all_complaints(source: str) -> Iterator[str]:
    """Everything is caught only at a bulkhead, marked as such, or to be raised again."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler) or not _catches_all(node.type):
            continue
        last = node.body[-1]
        raised_again = isinstance(last, ast.Raise) and last.exc is None
        if not raised_again and "# bulkhead:" not in lines[node.lineno - 1]:
            yield f"line {node.lineno}: catches everything without '# bulkhead:'"


def _catches_all(kind: ast.expr | None) -> bool:
    if kind is None:
        return True
    parts = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(isinstance(part, ast.Name) and part.id in ("Exception", "BaseException") for part in parts)


def ignore_complaints(source: str) -> Iterator[str]:
    """A type error is silenced with its code and a reason."""
    for number, line in enumerate(source.splitlines(), 1):
        if _BARE_IGNORE.search(line):
            yield f"line {number}: type: ignore without code and reason"


def imported(source: str) -> set[str]:
    """Top-level names of every module that a source imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def links(page: str) -> list[str]:
    """Targets of a Markdown page's relative links, without anchors; code is no link."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.DOTALL)
    targets = (target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose))
    return [target for target in targets if target and "://" not in target]


def requirements(text: str) -> set[str]:
    """The requirements of a .in file, without comments and references."""
    matches = (_REQUIREMENT.match(line) for line in text.splitlines() if not line.lstrip().startswith(("#", "-")))
    return {match[1].strip() for match in matches if match}
