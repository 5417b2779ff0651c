"""The levels of the design, read from the syntax tree; and what an import of the package costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import everyframe

PACKAGE = Path(everyframe.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Imports go down. What stands at one level does not know of its siblings.
LEVELS = {
    "cpu": -1,
    "extras": -1,
    "version": -1,
    "feature_files": 0,
    "processes": 0,
    "spans": 0,
    "tokens": 0,
    "video": 0,
    "backbone": 1,
    "cost": 1,
    "features": 1,
    "synthetic": 1,
    "encoders": 2,
    "tasks": 2,
    "pipeline": 3,
    "library": 3,
    "paper_costs": 3,
    "report": 3,
    "timeline": 3,
    "training": 3,
    "audit": 4,
    "console": 4,
    "demo": 4,
    "evaluation": 4,
    "exports": 4,
    "indexing": 4,
    "preview": 4,
    "scale": 4,
    "serve": 4,
    "token_pictures": 4,
    "cli": 5,
}
OPTIONAL = {
    "accelerate", "datasets", "faiss", "fastapi", "fsspec", "gcsfs", "h5py", "lancedb", "matplotlib", "pandas", "peft",
    "PIL", "prometheus_client", "pyarrow", "pycocoevalcap", "ray", "s3fs", "scenedetect", "scipy", "starlette",
    "torchao", "torchvision", "uvicorn", "webdataset",
}  # fmt: skip
PUBLIC = [
    "Cost",
    "DenseEncoder",
    "FeaturesError",
    "Hit",
    "Library",
    "LibraryError",
    "Model",
    "ModelError",
    "Moment",
    "ResidualTokenizer",
    "ResidualViT",
    "ReuseEncoder",
    "TempMe",
    "ToMe",
    "VidTLDR",
    "VideoError",
    "VideoFeatures",
    "VideoModel",
    "encode_video",
    "flops",
    "ground",
    "load",
    "load_video",
    "probe",
    "search",
]


def imports_of(source):
    """(full name, line, only for types?, at module level?) of every import in the text of a module."""
    found = []

    def visit(node, typing_only, top):
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, typing_only, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found.extend((f"{base}.{alias.name}", node.lineno, typing_only, top) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, True, top)
            for child in node.orelse:
                visit(child, typing_only, top)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                visit(child, typing_only, top and not inside)

    visit(ast.parse(source), False, True)
    return found


def part_of(path):
    """The first name under the package: "video" for video/decode.py, "cost" for cost.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def broken_rule(part, imported, typing_only):
    """Why `part` may not import the part `imported`, or None."""
    if imported == part:
        return None
    if imported not in LEVELS:
        return f"{imported} has no level"
    if LEVELS[imported] > LEVELS[part]:
        return "goes up"
    if LEVELS[imported] == LEVELS[part] and not typing_only:
        return "goes sideways"
    return None


def test_every_part_has_a_level():
    assert {part_of(file) for file in FILES} - {"__init__"} <= set(LEVELS)


def test_no_catch_all_modules():
    names = {piece.removesuffix(".py") for file in FILES for piece in file.relative_to(PACKAGE).parts}
    assert not names & {"utils", "util", "common", "core", "helpers", "misc"}


def test_imports_go_down():
    broken = []
    for file in FILES:
        part = part_of(file)
        for name, line, typing_only, _ in imports_of(file.read_text(encoding="utf-8")):
            assert not name.startswith("."), f"{file.name}:{line}: relative import"
            pieces = name.split(".")
            if pieces[0] != "everyframe" or part == "__init__" or len(pieces) == 1:
                continue
            why = broken_rule(part, pieces[1], typing_only)
            if why:
                broken.append(f"{file.relative_to(PACKAGE)}:{line} imports {name}: {why}")
    assert not broken, "\n".join(broken)


def test_synthetic_imports_only_video():
    files = (PACKAGE / "synthetic").glob("*.py")
    names = {name for file in files for name, *_ in imports_of(file.read_text(encoding="utf-8"))}
    assert {name.split(".")[1] for name in names if name.startswith("everyframe.")} == {"synthetic", "video"}


def test_modules_have_no_import_cycles():
    """At the level of files, for what is imported when a module is loaded."""
    modules = {}
    for file in FILES:
        pieces = ("everyframe", *file.relative_to(PACKAGE).with_suffix("").parts)
        modules[".".join(pieces).removesuffix(".__init__")] = file

    def home(name):
        """The module that `from ... import` of this name loads last: itself, or where it is defined."""
        return name if name in modules else name.rpartition(".")[0]

    graph = {}
    for module, file in modules.items():
        loaded = imports_of(file.read_text(encoding="utf-8"))
        graph[module] = {home(name) for name, _, typing_only, top in loaded if top and not typing_only} & set(modules)
    done = set()

    def walk(name, trail):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for imported in sorted(graph[name]):
                walk(imported, [*trail, name])
            done.add(name)

    for name in sorted(graph):
        walk(name, [])
    dense, plan, cost = "everyframe.encoders.dense", "everyframe.encoders.plan", "everyframe.cost"
    assert graph[dense] == {"everyframe.backbone", plan, cost}


def test_only_video_imports_av():
    importers = {
        part_of(file)
        for file in FILES
        for name, *_ in imports_of(file.read_text("utf-8"))
        if name.split(".")[0] == "av"
    }
    assert importers == {"video"}


def test_optional_packages_are_imported_where_they_are_used():
    # FastAPI reads annotations at import, so the server's modules name it on top; nothing imports them but the
    # command that has checked that it is there.
    lazy = [file for file in FILES if part_of(file) != "serve" or file.name == "__init__.py"]
    early = [
        f"{file.relative_to(PACKAGE)}:{line} imports {name}"
        for file in lazy
        for name, line, typing_only, top in imports_of(file.read_text(encoding="utf-8"))
        if top and not typing_only and name.split(".")[0] in OPTIONAL
    ]
    assert not early, "\n".join(early)


@pytest.mark.parametrize(
    ("part", "source", "expected"),
    [
        ("tasks", "from everyframe.features import VideoFeatures", [None]),
        ("tasks", "from everyframe.encoders import DenseEncoder", ["goes sideways"]),
        ("tasks", "def f():\n    from everyframe.encoders import DenseEncoder", ["goes sideways"]),
        ("cost", "if TYPE_CHECKING:\n    from everyframe.backbone import Model", [None]),
        ("cost", "if TYPE_CHECKING:\n    from everyframe.encoders import Encoder", ["goes up"]),
        ("video", "from everyframe import cli, spans", ["goes up", "goes sideways"]),
        ("encoders", "import everyframe.encoders.dense, everyframe.tokens.drop", [None, None]),
        ("cli", "from everyframe.common import x", ["common has no level"]),
    ],
)
def test_these_rules_can_fail(part, source, expected):
    found = [broken_rule(part, name.split(".")[1], typing) for name, _, typing, _ in imports_of(source)]
    assert found == expected


# --- what an import costs, and what it gives -------------------------------------------------------------

_HEAVY = {"torch", "transformers", "av", "numpy", "h5py", "pyarrow", "matplotlib", "lancedb", "fastapi", "safetensors"}
HEAVY = f"sorted({_HEAVY} & set(sys.modules))"


@pytest.mark.parametrize(
    "code",
    [
        f"import sys, everyframe; dir(everyframe); print({HEAVY})",
        "import sys\nsys.argv = ['everyframe', '--help']\nfrom everyframe.cli import main\n"
        f"try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\nprint({HEAVY})",
        f"import sys, everyframe.spans, everyframe.features; print([n for n in {HEAVY} if n != 'numpy'])",
    ],
    ids=["import", "help", "features"],
)
def test_light_things_load_nothing_heavy(code):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "[]"


def test_public_names_are_pinned():
    assert everyframe.__all__ == PUBLIC
    assert dir(everyframe) == PUBLIC
    assert sorted(everyframe._HOMES) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves(name):
    value = getattr(everyframe, name)
    assert value.__name__ == name
    assert value.__module__.startswith(f"everyframe.{everyframe._HOMES[name]}")
    assert value.__doc__


def test_unknown_name_raises():
    with pytest.raises(AttributeError, match="module 'everyframe' has no attribute 'Everything'"):
        everyframe.Everything  # noqa: B018


def test_typing_block_names_the_same_homes():
    """Type checkers and Python find each public name in the same place."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    declared = {
        alias.name: node.module.removeprefix("everyframe.")
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == everyframe._HOMES
