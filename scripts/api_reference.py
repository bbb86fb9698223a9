"""Writes docs/api.md from the docstrings and signatures of kinema's public names.

python scripts/api_reference.py           write it
python scripts/api_reference.py --check   exit 1 if it is out of date
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"

# Headings, and which public names stand below each: by the module that defines them.
SECTIONS = (
    ("Pipelines", ("families", "pipelines"), "What turns words and pictures into video."),
    ("Schedulers", ("sampling",), "How noise becomes a clip, under their known names."),
    ("Media", ("media",), "Pictures and videos in and out."),
    ("Checkpoints", ("checkpoint",), "What a file of weights is."),
    ("Errors", ("errors",), "Everything kinema raises on purpose."),
)
HEADINGS = {"Args:": "Arguments", "Raises:": "Raises", "Returns:": "Returns", "Yields:": "Yields"}


def main() -> int:
    page = render()
    if "--check" in sys.argv[1:]:
        fresh = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page
        print(f"{PAGE.relative_to(ROOT)} is {'up to date' if fresh else 'out of date; run make docs'}.")
        return 0 if fresh else 1
    PAGE.write_text(page, encoding="utf-8")
    print(f"Wrote {PAGE.relative_to(ROOT)}")
    return 0


def render() -> str:
    """The whole page."""
    import kinema

    public = {name: getattr(kinema, name) for name in kinema.__all__ if not name.startswith("__")}
    lines = [
        "# API reference",
        "",
        "Built from the docstrings by `make docs`; do not edit by hand. All of it is importable from `kinema`.",
        "",
    ]
    for title, parts, what in SECTIONS:
        entries = {name: value for name, value in public.items() if _part(value) in parts}
        if entries:
            lines += [f"## {title}", "", what, "", *_section(entries)]
    return "\n".join(lines).rstrip() + "\n"


def _part(value: Any) -> str:
    return ([*value.__module__.split("."), ""])[1]


def _section(entries: dict[str, Any]) -> Iterator[str]:
    """Every name; methods that several classes share come first, once."""
    classes = [v for n, v in entries.items() if inspect.isclass(v) and v.__name__ == n]
    owners = Counter(owner for cls in classes for owner in {_owner(f) for _, f in _methods(cls)})
    shared = {owner for owner, users in owners.items() if users > 1 and owner not in entries}
    for name, value in entries.items():
        yield from _entry(name, value, hidden=shared | (set(entries) - {name}))
    by_users: dict[tuple[str, ...], list[str]] = {}
    for owner in sorted(shared):
        users = tuple(cls.__name__ for cls in classes if owner in {_owner(f) for _, f in _methods(cls)})
        by_users.setdefault(users, []).append(owner)
    for users, found in by_users.items():
        yield from (f"### Shared by {' and '.join(users) if len(users) < 4 else 'all of these'}", "")
        for method, function in _methods(entries[users[0]]):
            if _owner(function) in found:
                yield from _method(method, function)


def _owner(function: Any) -> str:
    """The name of the class whose body defines a method."""
    return str(inspect.unwrap(getattr(function, "__func__", function)).__qualname__.rpartition(".")[0])


def _entry(name: str, value: Any, hidden: set[str]) -> Iterator[str]:
    yield from (f"### {name}", "")
    if not inspect.isclass(value):
        yield from _signature(name, value)
        yield from _prose(value)
        return
    if value.__name__ != name:
        yield from (f"Another name of [{value.__name__}](#{value.__name__.lower()}).", "")
        return
    if issubclass(value, Exception):
        yield from (f"A kind of {', '.join(f'`{base.__name__}`' for base in value.__bases__)}.", "")
    else:
        yield from _signature(name, value)
    yield from _prose(value)
    yield from _options(value)
    for method, function in _methods(value):
        if _owner(function) not in hidden:
            yield from _method(f"{name}.{method}", function)
    parents = [cls.__name__ for cls in value.__mro__[1:] if cls.__name__ in hidden]
    listed = [f"[{parent}](#{parent.lower()})" for parent in parents if hasattr(sys.modules["kinema"], parent)]
    if listed and not issubclass(value, Exception):
        yield from (f"It has the methods of {' and '.join(listed)} too.", "")


def _options(cls: type) -> Iterator[str]:
    """What a class is configured with: the fields of its `config_class`, and their defaults."""
    if dataclasses.is_dataclass(config := getattr(cls, "config_class", None)):
        known = [f for f in dataclasses.fields(config) if f.name not in config.skipped]
        yield from ("Options: " + ", ".join(f"`{f.name}` = {_default(f.default)}" for f in known) + ".", "")


def _method(title: str, function: Any) -> Iterator[str]:
    yield from (f"#### {title}", "")
    yield from _signature(title.rpartition(".")[2], function)
    yield from _prose(function)


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and `__call__` that kinema itself defines and documents, those of parents too."""
    for name, value in inspect.getmembers(cls):
        if name.startswith("_") and name != "__call__":
            continue
        function = inspect.unwrap(getattr(value, "__func__", value))
        if inspect.isfunction(function) and function.__module__.startswith("kinema.") and function.__doc__:
            yield name, value


def _signature(name: str, value: Any) -> Iterator[str]:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return
    parts = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    texts = [_parameter(p) for p in parts]
    for i, p in enumerate(parts):  # the star that separates what can only be named
        named = p.kind is p.KEYWORD_ONLY
        if named and not any(q.kind in (q.KEYWORD_ONLY, q.VAR_POSITIONAL) for q in parts[:i]):
            texts.insert(i, "*")
            break
    returned = "" if signature.return_annotation is signature.empty else f" -> {_type(signature.return_annotation)}"
    line = f"{name}({', '.join(texts)}){'' if inspect.isclass(value) else returned}"
    if len(line) > 100:
        tail = "" if inspect.isclass(value) else returned
        line = f"{name}(\n" + "".join(f"    {text},\n" for text in texts) + f"){tail}"
    yield from ("<!-- no-run: a signature -->", "```python", line, "```", "")


def _parameter(p: inspect.Parameter) -> str:
    star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
    text = star + p.name
    if p.annotation is not p.empty:
        text += f": {_type(p.annotation)}"
    if p.default is not p.empty:
        text += (" = " if p.annotation is not p.empty else "=") + _default(p.default)
    return text


def _default(value: Any) -> str:
    text = getattr(value, "__name__", None) if callable(value) else repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", text or repr(value))


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:typing|collections\.abc|pathlib|fractions|kinema(?:\.\w+)*)\.", "", text)


def _prose(value: Any) -> Iterator[str]:
    """A docstring as Markdown: sections as lists, indented blocks as they are."""
    inside = False
    for line in (inspect.getdoc(value) or "Not documented.").splitlines():
        if line in HEADINGS:
            inside = True
            yield from (f"{HEADINGS[line]}:", "")
        elif inside and (match := re.match(r"    ([*\w, ]+?): (.*)", line)):
            yield f"- `{match[1]}`: {match[2]}"
        elif inside and line.startswith("    "):
            yield "  " + line.strip() if line.startswith("        ") else f"- {line.strip()}"
        else:
            inside = inside and not line
            yield line.rstrip()
    yield ""


if __name__ == "__main__":
    sys.exit(main())
