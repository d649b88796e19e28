"""Move and merge modules of the package as a plan says; imports and names in texts follow.

    python tools/move_modules.py PLAN

A plan has one operation per line, paths as seen from `spatialvla_ft/`; `#` starts a comment:

    move data/a.py converters/a.py      the file, wherever it is imported
    fold data/b.py converters/a.py      its definitions join those of the other file
    take NAME,NAME data/c.py hub/a.py   some definitions only

Needs libcst. Afterwards `ruff check --fix` and `ruff format` sort and prune the imports, and what
the script says is to be looked at. Nothing is committed.
"""

# ruff: noqa: N802 - libcst names its methods after nodes

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import libcst as cst
from libcst import matchers as m

PACKAGE = "spatialvla_ft"
TEXTS = (".md", ".toml", ".yaml", ".yml", "Makefile", ".html", ".txt")
_IMPORTS = m.SimpleStatementLine(body=[m.AtLeastN(m.ImportFrom() | m.Import(), n=1)])
_FUTURE = m.SimpleStatementLine(body=[m.ImportFrom(module=m.Name("__future__"))])
_CHECKING = m.If(test=m.Name("TYPE_CHECKING"))
_SENTENCE = m.SimpleStatementLine(body=[m.Expr(m.SimpleString() | m.ConcatenatedString())])
UNSAID = '"""What is in here has not been said yet."""\n'
EMPTY = f"{UNSAID}\nfrom __future__ import annotations\n"


class Plan(NamedTuple):
    """What is to be done, paths relative to the package."""

    moves: dict[str, str]
    folds: list[tuple[str, str]]
    takes: list[tuple[list[str], str, str]]

    @property
    def addresses(self) -> dict[str, str]:
        """{old module: new module}."""
        return {dotted(old): dotted(new) for old, new in [*self.moves.items(), *self.folds]}

    @property
    def paths(self) -> dict[str, str]:
        """{old path: new path}."""
        return {**self.moves, **dict(self.folds)}

    def old_path(self, path: str) -> str:
        """Where a file that has its new name lies before the moves."""
        return next((old for old, new in self.moves.items() if new == path), path)


def read_plan(path: Path) -> Plan:
    """Parse a plan; SystemExit for a line that is none."""
    plan = Plan({}, [], [])
    for line in path.read_text().splitlines():
        match line.split("#")[0].split():
            case []:
                continue
            case ["move", old, new]:
                plan.moves[old] = new
            case ["fold", old, new]:
                plan.folds.append((old, new))
            case ["take", names, old, new]:
                plan.takes.append((names.split(","), old, new))
            case _:
                raise SystemExit(f"{path}: {line!r} is neither move A B, fold A B nor take N,N A B")
    return plan


def dotted(path: str) -> str:
    """The module of a file of the package."""
    parts = Path(path).with_suffix("").parts
    return ".".join((PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def absolute(module: str | None, is_package: bool, node: cst.ImportFrom) -> str:
    """The module that `from X import` means in another module."""
    name, level = code(node.module), len(node.relative)
    if not level or module is None:
        return name
    parts = module.split(".")
    parts = parts if is_package else parts[:-1]
    return ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])


def relative(target: str, module: str, is_package: bool) -> tuple[int, str]:
    """(dots, rest) by which a module names another."""
    base, parts = module.split("."), target.split(".")
    base = base if is_package else base[:-1]
    common = 0
    while common < min(len(base), len(parts)) and base[common] == parts[common]:
        common += 1
    return len(base) - common + 1, ".".join(parts[common:])


def code(node: cst.CSTNode | None) -> str:
    """Source of a node."""
    return "" if node is None else cst.Module([]).code_for_node(node)


def name_node(name: str) -> cst.Name | cst.Attribute:
    """`a.b.c` as a node."""
    first, *rest = name.split(".")
    node: cst.Name | cst.Attribute = cst.Name(first)
    for part in rest:
        node = cst.Attribute(node, cst.Name(part))
    return node


class Mender:
    """Old modules and paths inside texts, all at once, so that no new name is taken for an old."""

    def __init__(self, plan: Plan) -> None:
        self.new = {**plan.addresses, **plan.paths}
        modules = sorted(plan.addresses, key=len, reverse=True)
        files = sorted((p for p in plan.paths if "/" in p), key=len, reverse=True)
        either = ["|".join(map(re.escape, names)) or "$^" for names in (modules, files)]
        self.pattern = re.compile(
            rf"(?<![\w./])(?:({either[0]})(?!\w)|({PACKAGE}/)?({either[1]})(?!\w))"
        )

    def __call__(self, text: str) -> str:
        """The text with new names."""
        return self.pattern.sub(
            lambda found: (found[2] or "") + self.new[found[1] or found[3]], text
        )


class Follow(cst.CSTTransformer):
    """Imports, strings and comments of one file."""

    def __init__(
        self, path: str, plan: Plan, known: set[str], mend: Mender, problems: list[str]
    ) -> None:
        self.path, self.plan, self.known, self.mend = path, plan, known, mend
        self.problems, self.addresses = problems, plan.addresses
        self.names = {(dotted(a), n): dotted(b) for ns, a, b in plan.takes for n in ns}
        inside = path.startswith(f"{PACKAGE}/")
        inner = path.removeprefix(f"{PACKAGE}/")
        self.old = dotted(inner) if inside else None
        self.new = self.addresses.get(self.old, self.old) if self.old else None
        self.old_package = path.endswith("__init__.py")
        self.new_package = plan.moves.get(inner, path).endswith("__init__.py")
        self.renamed: dict[str, str | None] = {}
        self.taken: set[str] = set()
        self.used: dict[str, set[str]] = {}

    def visit_Module(self, node: cst.Module) -> None:
        """Which names the file has, and what it takes of each."""
        for name in m.findall(node, m.Name()):
            self.taken.add(cst.ensure_type(name, cst.Name).value)
        for found in m.findall(node, m.Attribute(value=m.Name())):
            attribute = cst.ensure_type(found, cst.Attribute)
            self.used.setdefault(code(attribute.value), set()).add(attribute.attr.value)

    def leave_ImportFrom(
        self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom
    ) -> cst.ImportFrom | cst.FlattenSentinel[cst.ImportFrom] | cst.RemovalSentinel:
        """The import from where its names lie now; nothing of what lies in the same file."""
        node, source = updated_node, absolute(self.old, self.old_package, original_node)
        if source.split(".")[0] != PACKAGE or isinstance(node.names, cst.ImportStar):
            return node
        groups: dict[str, list[cst.ImportAlias]] = {}
        for alias in node.names:
            for target, new in self._where(source, alias):
                groups.setdefault(target, []).append(
                    new.with_changes(comma=cst.MaybeSentinel.DEFAULT)
                )
        if not groups:
            return cst.RemoveFromParent()
        if (
            list(groups) == [source]
            and self.old == self.new
            and len(groups[source]) == len(node.names)
        ):
            return node
        new_nodes = [self._import(target, names, node) for target, names in groups.items()]
        return new_nodes[0] if len(new_nodes) == 1 else cst.FlattenSentinel(new_nodes)

    def _import(
        self, target: str, names: list[cst.ImportAlias], like: cst.ImportFrom
    ) -> cst.ImportFrom:
        if not like.relative or self.new is None:
            return cst.ImportFrom(module=name_node(target), names=names)
        dots, rest = relative(target, self.new, self.new_package)
        module = name_node(rest) if rest else None
        return cst.ImportFrom(module=module, names=names, relative=[cst.Dot()] * dots)

    def _where(self, source: str, alias: cst.ImportAlias) -> Iterable[tuple[str, cst.ImportAlias]]:
        """(module, alias) of what an import becomes."""
        name = code(alias.name)
        local = code(alias.asname.name) if alias.asname else name
        full = f"{source}.{name}"
        if full not in self.known:
            target = self.names.get((source, name)) or self.addresses.get(source, source)
            if target != self.new:
                yield target, alias
            elif local != name:
                self.problems.append(f"{self.path}: {name}, now of the same file, was {local}")
            return
        target = self.addresses.get(full, full)
        parent, leaf = target.rsplit(".", 1)
        if target == self.new:
            self.renamed[local] = None
        elif alias.asname or leaf == name:
            yield parent, alias.with_changes(name=cst.Name(leaf))
        elif leaf not in self.taken:
            self.renamed[name] = leaf
            yield parent, cst.ImportAlias(cst.Name(leaf))
        elif self.used.get(name) and self.path.startswith(PACKAGE):
            self.renamed[name] = None
            yield from ((target, cst.ImportAlias(cst.Name(n))) for n in sorted(self.used[name]))
        else:
            space = cst.SimpleWhitespace(" ")
            yield (
                parent,
                cst.ImportAlias(cst.Name(leaf), asname=cst.AsName(cst.Name(name), space, space)),
            )

    def leave_Import(self, original_node: cst.Import, updated_node: cst.Import) -> cst.Import:
        """`import a.b` of a module that moves."""
        new = [
            alias.with_changes(name=name_node(self.addresses[code(alias.name)]))
            if code(alias.name) in self.addresses
            else alias
            for alias in updated_node.names
        ]
        return updated_node.with_changes(names=new)

    def leave_SimpleString(
        self, original_node: cst.SimpleString, updated_node: cst.SimpleString
    ) -> cst.SimpleString:
        """Modules that are named to be started or patched."""
        return updated_node.with_changes(value=self.mend(updated_node.value))

    def leave_FormattedStringText(
        self, original_node: cst.FormattedStringText, updated_node: cst.FormattedStringText
    ) -> cst.FormattedStringText:
        """The same in f-strings."""
        return updated_node.with_changes(value=self.mend(updated_node.value))

    def leave_Comment(self, original_node: cst.Comment, updated_node: cst.Comment) -> cst.Comment:
        """The same in comments."""
        return updated_node.with_changes(value=self.mend(updated_node.value))


class Rename(cst.CSTTransformer):
    """`old.f` becomes `new.f`, or `f` where the module is gone."""

    def __init__(self, renamed: dict[str, str | None]) -> None:
        self.renamed = renamed

    def leave_Attribute(
        self, original_node: cst.Attribute, updated_node: cst.Attribute
    ) -> cst.BaseExpression:
        """Where something of a module is used."""
        base = code(original_node.value)
        if not isinstance(original_node.value, cst.Name) or base not in self.renamed:
            return updated_node
        new = self.renamed[base]
        return updated_node.attr if new is None else updated_node.with_changes(value=cst.Name(new))

    def leave_Arg(self, original_node: cst.Arg, updated_node: cst.Arg) -> cst.Arg:
        """Where a module itself is passed on."""
        new = self.renamed.get(code(original_node.value))
        return updated_node.with_changes(value=cst.Name(new)) if new else updated_node


class Relocate(cst.CSTTransformer):
    """Relative imports of statements that go to another module; None drops those of itself."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def leave_ImportFrom(
        self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom
    ) -> cst.ImportFrom | cst.RemovalSentinel:
        """The same module, seen from the new place."""
        target = absolute(self.old, False, original_node)
        if target == self.new:
            return cst.RemoveFromParent()
        if not updated_node.relative:
            return updated_node
        dots, rest = relative(target, self.new, False)
        module = name_node(rest) if rest else None
        return updated_node.with_changes(module=module, relative=[cst.Dot()] * dots)


class Parts(NamedTuple):
    """A module, taken apart."""

    start: list[cst.BaseStatement]
    imports: list[cst.BaseStatement]
    body: list[cst.BaseStatement]


def split(module: cst.Module) -> Parts:
    """Docstring and __future__, imports, and the rest."""
    parts = Parts([], [], [])
    for i, statement in enumerate(module.body):
        first = (i == 0 and m.matches(statement, _SENTENCE)) or m.matches(statement, _FUTURE)
        outside = m.matches(statement, _IMPORTS | _CHECKING)
        (parts.start if first else parts.imports if outside else parts.body).append(statement)
    return parts


def defined(statement: cst.CSTNode) -> set[str]:
    """Names that a statement defines."""
    if isinstance(statement, cst.FunctionDef | cst.ClassDef):
        return {statement.name.value}
    targets = m.findall(statement, m.AssignTarget() | m.AnnAssign() | m.TypeAlias())
    if not isinstance(statement, cst.SimpleStatementLine):
        return set()
    found: set[str] = set()
    for target in targets:
        if isinstance(target, cst.TypeAlias):
            found.add(target.name.value)
            continue
        left = target.target  # type: ignore[attr-defined]
        elements = [e.value for e in left.elements] if isinstance(left, cst.Tuple) else [left]
        found |= {e.value for e in elements if isinstance(e, cst.Name)}
    return found


def fold(trees: dict[str, cst.Module], source: str, target: str, first: bool) -> list[str]:
    """Join one module to another, before its definitions or behind them; what met there."""
    ours, theirs = split(trees[target]), split(trees.pop(source))
    texts = {code(statement).strip() for statement in ours.body}
    names = set().union(*map(defined, ours.body)) if ours.body else set()
    new = [s for s in theirs.body if code(s).strip() not in texts]
    clashes = names & set().union(*map(defined, new)) if new else set()
    body = new + ours.body if first else ours.body + new
    trees[target] = trees[target].with_changes(
        body=[*ours.start, *ours.imports, *theirs.imports, *body]
    )
    return [f"{source} and {target} both define {name}" for name in sorted(clashes)]


def take(
    trees: dict[str, cst.Module], names: list[str], source: str, target: str, plan: Plan
) -> list[str]:
    """Cut definitions, each with the sentence below it, and put them at the end of another file."""
    ours = split(trees[source])
    stays: list[cst.BaseStatement] = []
    goes: list[cst.BaseStatement] = []
    for i, statement in enumerate(ours.body):
        about = m.matches(statement, _SENTENCE) and i and defined(ours.body[i - 1]) & set(names)
        (goes if about or defined(statement) & set(names) else stays).append(statement)
    trees[source] = trees[source].with_changes(body=[*ours.start, *ours.imports, *stays])
    old, new = (dotted(path.removeprefix(f"{PACKAGE}/")) for path in (source, target))
    old, new = (plan.addresses.get(module, module) for module in (old, new))
    theirs = split(trees.setdefault(target, cst.parse_module(EMPTY)))
    imports = [statement.visit(Relocate(old, new)) for statement in ours.imports]
    kept = [statement for statement in imports if isinstance(statement, cst.BaseStatement)]
    trees[target] = trees[target].with_changes(
        body=[*theirs.start, *theirs.imports, *kept, *theirs.body, *goes]
    )
    missing = set(names) - set().union(*map(defined, goes)) if goes else set(names)
    return [f"{source} has no {name}" for name in sorted(missing)]


def _imported(node: cst.ImportFrom, module: str) -> list[str]:
    """Modules that an import may mean: the one it names, or those that it takes from it."""
    source = absolute(module, False, node)
    if isinstance(node.names, cst.ImportStar):
        return [source]
    return [source, *(f"{source}.{code(alias.name)}" for alias in node.names)]


def git(*arguments: str) -> str:
    """Output of git."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def main(plan: Plan) -> list[str]:
    """Do what the plan says, in the working tree; what a person must look at."""
    tracked = [t for t in git("ls-files").split("\n") if t and Path(t).is_file()]
    sources = [t for t in tracked if t.endswith(".py")]
    inner = {t.removeprefix(f"{PACKAGE}/") for t in sources if t.startswith(f"{PACKAGE}/")}
    if lost := set(plan.paths) - inner:
        raise SystemExit(f"no such files: {', '.join(sorted(lost))}")
    known, mend, problems = {dotted(path) for path in inner}, Mender(plan), list[str]()
    trees, before = {}, {}
    for path in sources:
        before[path] = cst.parse_module(Path(path).read_text())
        follow = Follow(path, plan, known, mend, problems)
        trees[path] = before[path].visit(follow).visit(Rename(follow.renamed))
    place = {new: f"{PACKAGE}/{plan.old_path(new)}" for new in [*plan.moves.values()]}
    where = {p: place.get(p, f"{PACKAGE}/{p}") for p in [b for _, b in plan.folds]}
    for names, old, new in plan.takes:
        target = place.get(new, f"{PACKAGE}/{new}")
        problems += take(trees, names, f"{PACKAGE}/{old}", target, plan)
    for old, new in plan.folds:
        source, target = f"{PACKAGE}/{old}", where[new]
        imported = target in before and dotted(old) in {
            name
            for node in m.findall(before[target], m.ImportFrom())
            for name in _imported(cst.ensure_type(node, cst.ImportFrom), dotted(plan.old_path(new)))
        }
        trees.setdefault(target, cst.parse_module(EMPTY))
        problems += fold(trees, source, target, first=imported)
        git("rm", "-q", "--cached", source)
        Path(source).unlink()
    _write(plan, trees, problems)
    for path in tracked:
        if path.endswith(TEXTS):
            Path(path).write_text(mend(Path(path).read_text()))
    git("add", "-A")
    return problems


def _write(plan: Plan, trees: dict[str, cst.Module], problems: list[str]) -> None:
    """All files at their new places, by way of a name that nothing else has."""
    for old in plan.moves:
        git("mv", f"{PACKAGE}/{old}", f"{PACKAGE}/{old}.moving")
    for old, new in plan.moves.items():
        Path(PACKAGE, new).parent.mkdir(parents=True, exist_ok=True)
        git("mv", f"{PACKAGE}/{old}.moving", f"{PACKAGE}/{new}")
    for path, tree in trees.items():
        inner = path.removeprefix(f"{PACKAGE}/")
        new = Path(PACKAGE, plan.moves[inner]) if inner in plan.moves else Path(path)
        module = dotted(str(new.relative_to(PACKAGE))) if new.parts[0] == PACKAGE else None
        if module and new.name != "__init__.py":
            tree = tree.visit(Relocate(module, module))
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(tree.code)
        start = new.parent / "__init__.py"
        if module and not start.is_file():
            start.write_text(UNSAID)
            problems.append(f"{start} is new and wants a sentence")


if __name__ == "__main__":
    print("\n".join(main(read_plan(Path(sys.argv[1])))) or "nothing to look at")
