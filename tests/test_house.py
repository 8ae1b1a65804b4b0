"""Rules of the package's structure, read from its source."""

import ast
import functools

import pytest
from conftest import ROOT

PACKAGE = ROOT / "projects" / "TOOD" / "tood"
FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("tools", "demo", "dev", "configs")
PROGRAMS = [path for name in FOLDERS for path in (ROOT / name).rglob("*.py")]
# A room imports from the rows above its own, and from itself.
ROWS = (
    ("utils",),
    ("modeling", "data"),
    ("config", "evaluation", "deploy"),
    ("checkpoint", "visualization"),
    ("model_zoo", "inference"),
    ("engine",),
    ("app",),
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_MODULES, MAX_CODE_LINES, MAX_DETECTOR_LINES = 12, 40, 300
# Docstrings open with a verb or a noun.
WRONG_OPENINGS = {"What", "Which", "Who", "Where", "How", "Whether", "Let", "As", "Of", "From"}
WRONG_OPENINGS |= {"At", "By", "For", "In", "On", "To", "With", "Without", "If", "When", "That"}
PARSERS = ("app/cli.py", "utils/arguments.py")  # of command lines


@functools.cache
def trees():
    return [(path, ast.parse(path.read_text())) for path in FILES]


def find_room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def find_row(room):
    return next(i for i, row in enumerate(ROWS) if room in row)


def imported_rooms(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tood."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "tood":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (parts[1] for parts in names if parts[0] == "tood" and len(parts) > 1)


def test_imports_run_one_way():
    wrong = []
    for path, tree in trees():
        room = find_room(path)
        if room in ("__init__", "__main__"):
            continue
        for other in imported_rooms(tree):
            if other != room and find_row(other) >= find_row(room):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not wrong, wrong


def rooms_that_import(room):
    return {find_room(path) for path, tree in trees() if room in imported_rooms(tree)}


def test_nothing_outside_of_the_app_imports_it():
    assert rooms_that_import("app") <= {"app", "__main__"}


def test_the_model_needs_the_utilities_alone():
    others = {find_room(path) for path in FILES} - {"modeling", "utils"}
    assert not [room for room in others if "modeling" in rooms_that_import(room)]


def test_folders_are_small():
    folders = {path.parent for path in FILES}
    counts = {x.name: sum(p.stem != "__init__" for p in x.glob("*.py")) for x in folders}
    assert all(count <= MAX_MODULES for count in counts.values()), counts


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]


def code_lines(function, lines):
    """Lines of a function with its signature, without docstring, comments and blank lines."""
    body = range(function.lineno, function.end_lineno + 1)
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        body = [i for i in body if not docstring.lineno <= i <= docstring.end_lineno]
    texts = [lines[i - 1].strip() for i in body]
    return sum(bool(text) and not text.startswith("#") for text in texts)


def test_functions_are_short():
    long = {}
    for path, tree in trees():
        lines = path.read_text().splitlines()
        for function in functions(tree):
            count = code_lines(function, lines)
            if count > MAX_CODE_LINES and function.name != "add_tood_config":
                long[f"{path.relative_to(PACKAGE)}:{function.name}"] = count
    assert not long, long
    assert len((PACKAGE / "modeling" / "detector.py").read_text().splitlines()) <= (
        MAX_DETECTOR_LINES
    )


def test_docstrings_open_with_a_verb_or_a_noun():
    wrong = []
    programs = [(path, ast.parse(path.read_text())) for path in PROGRAMS]
    for path, tree in [*trees(), *programs]:
        kinds = (ast.Module, ast.ClassDef, *FUNCTIONS)
        texts = [ast.get_docstring(x) or "" for x in ast.walk(tree) if isinstance(x, kinds)]
        words = {text.split()[0].rstrip(",:.") for text in texts if text}
        wrong += [f"{path.relative_to(ROOT)}: {word}" for word in words & WRONG_OPENINGS]
    assert not wrong, wrong


def is_noun(name):
    """Return whether a name is X_of, of_X, or a noun and "of", as rows_of_table."""
    words = name.strip("_").split("_")
    return "of" in words and ("of" in words[:2] or words[-1] == "of")


def test_functions_are_verbs():
    paths = [*FILES, *PROGRAMS, *ROOT.glob("tests/**/*.py")]
    trees = ((path, ast.parse(path.read_text())) for path in paths)
    names = {f"{path.stem}.{f.name}" for path, tree in trees for f in functions(tree)}
    names = {name for name in names if ".test_" not in name}
    assert len(names) > 2000 and is_noun("rows_of_table") and not is_noun("read_rows_of_table")
    assert not {name for name in names if is_noun(name.split(".")[1])}


def test_fields_of_tuples_do_not_hide_their_methods():
    fields = {
        f"{path.stem}.{node.name}.{ast.unparse(field.target)}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "NamedTuple" in map(ast.unparse, node.bases)
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    }
    assert len(fields) > 100
    assert not {field for field in fields if field.endswith((".count", ".index"))}


def test_command_lines_are_parsed_in_one_place():
    paths = {p.relative_to(PACKAGE).as_posix() for p in FILES if "argument_parser" in p.read_text()}
    for path, tree in trees():
        imports = [x for x in ast.walk(tree) if isinstance(x, (ast.Import, ast.ImportFrom))]
        if any("argparse" in imported_names(x) for x in imports):
            paths.add(path.relative_to(PACKAGE).as_posix())
    assert paths == set(PARSERS)


def test_tests_mirror_the_package():
    tests = ROOT / "tests"
    paths = [*tests.rglob("test_*.py")]
    assert len({path.name for path in paths}) == len(paths)  # pytest needs it, too
    folders = {path.parent.relative_to(tests) for path in paths}
    beside = [x for x in folders if not any((y / x).is_dir() for y in (PACKAGE, ROOT))]
    assert not beside, beside


def test_code_lines_are_counted():
    text = 'def f(\n    x,\n):\n    """Doc\n    string."""\n\n    # why\n    return x\n'
    assert code_lines(ast.parse(text).body[0], text.splitlines()) == 4


@pytest.mark.parametrize("number", [*range(2, 12)])
def test_every_equation_of_the_paper_is_found_beside_its_code(number):
    texts = [path.read_text() for path in (PACKAGE / "modeling").glob("*.py")]
    ranges = [f"Eq. {low} to {high}" for low in range(1, number) for high in range(number, 13)]
    mentions = (f"Eq. {number}", f"Eq. {number - 1}, {number}", f"Eq. {number - 1} and {number}")
    assert any(mention in text for text in texts for mention in (*mentions, *ranges))
    if number == 9:  # once, as code
        lines = [line for text in texts for line in text.splitlines() if "# Eq. 9" in line]
        assert len(lines) == 1 and "return scores**alpha * " in lines[0]


def may_read_cfg(path, scopes):
    """Return whether a config may be read: to build an object from it, or to train with it."""
    names = {scope.name for scope in scopes}
    registered = any(
        isinstance(decorator, ast.Call)
        and ast.unparse(decorator.func).endswith("REGISTRY.register")
        for scope in scopes
        for decorator in scope.decorator_list
    )
    allowed = ("engine/trainer.py", "engine/train.py", "inference/predictor.py")
    return (
        find_room(path) in ("config", "app")
        or path.relative_to(PACKAGE).as_posix() in allowed
        or registered
        or "from_config" in names
    )


def find_readers():
    found = set()

    def visit(path, node, scopes):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            scopes = [*scopes, node]
        if isinstance(node, ast.Name) and node.id == "cfg" and not may_read_cfg(path, scopes):
            found.add(path.relative_to(PACKAGE).as_posix())
        for child in ast.iter_child_nodes(node):
            visit(path, child, scopes)

    for path, tree in trees():
        visit(path, tree, [])
    return found


def test_configs_are_read_where_things_are_built():
    assert not find_readers()


def test_programs_import_the_package_before_the_libraries():
    """It silences warnings that libraries give when they are imported."""
    programs = [*ROOT.glob("tools/*.py"), *ROOT.glob("demo/*.py"), ROOT / "train_net.py"]
    wrong = []
    for path in programs:
        rooms = [
            name.split(".")[0]
            for node in ast.parse(path.read_text()).body
            for name in imported_names(node)
        ]
        noisy = [rooms.index(name) for name in ("torch", "detectron2") if name in rooms]
        if noisy and ("tood" not in rooms or min(noisy) < rooms.index("tood")):
            wrong.append(path.name)
    assert not wrong, wrong


def imported_names(node):
    if isinstance(node, ast.ImportFrom):
        return [node.module]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
