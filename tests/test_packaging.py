"""What is installed, and how: import directions, code that is never run from data, the wheel's contents."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastdiff"
# Floors of the house, from the ground up. A module may import from its own floor's names and from those below.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("_version", "command_line", "interrupts", "lazy", "names", "files", "values", "_triton"),
    ("schedules",),
    ("plan", "prediction"),
    ("plot", "solvers"),
    ("ops",),
    ("guidance",),
    ("bind",),
    ("run",),
    ("likelihood",),
    ("training", "analytic", "integrations"),
    ("options",),
    ("sampler",),
    ("api", "inversion", "fitting", "generation", "engine"),
    ("losses",),
    ("__init__",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
"""A tuple is one floor, whose rooms do not import each other."""
LONGEST_CHAIN = 14
NUMPY_ONLY = (
    "interrupts",
    "names",
    "values",
    "_version",
    "files",
    "schedules",
    "plan",
    "prediction",
    "plot",
    "solvers",
)
NUMPY_ONLY += ("ops.brownian", "ops.layout", "ops.philox", "ops.rank")


def modules() -> dict[str, Path]:
    """Dotted name below `fastdiff` and path of every module, the Triton kernels through their symlink's target."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts)] = path
    for path in sorted((ROOT / "triton_kernels").glob("*.py")):
        found[f"_triton.{path.stem}"] = path
    return found


MODULES = modules()


def imports(name: str, path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, as a dotted absolute name."""
    found = set()
    package = ["fastdiff", *name.split(".")][:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from fastdiff import x` may name a module or a thing that __init__ has; both count as `fastdiff.x`.
            found |= {f"{origin}.{alias.name}" for alias in node.names} if origin == "fastdiff" else {origin}
    return found


def room(module: str) -> str:
    """The flat file or the package that a module of fastdiff is in."""
    return module.split(".")[0] if module else "__init__"


def inside(name: str) -> set[str]:
    """Modules of fastdiff that a module imports, below `fastdiff`; a package's face stands for what it hands on."""
    found = set()
    for module in imports(name, MODULES[name]):
        if module.split(".")[0] == "fastdiff":
            rest = module.split(".", 1)[1] if "." in module else ""
            found.add(rest if rest in MODULES else f"{rest}.__init__" if f"{rest}.__init__" in MODULES else room(rest))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    own = room(name)
    below = {r for floor in FLOORS for r in floor}
    assert own in below, f"fastdiff/{own} has no floor in FLOORS"
    allowed = {own, *(r for floor in FLOORS[: next(i for i, f in enumerate(FLOORS) if own in f)] for r in floor)}
    # Faces of the public names hand on what lies above the rooms that use them.
    wrong = {room(module) for module in inside(name)} - allowed
    assert not wrong, f"fastdiff.{name} imports from {sorted(wrong)}, on its own floor or above"


def test_no_circle_of_imports() -> None:
    """Not of files either: each can be read with only what lies below it."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for module in inside(name):
                # A face is read by those outside of its package.
                if module in MODULES and not (module.endswith("__init__") and room(module) == room(name)):
                    visit(module, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_the_longest_chain_of_rooms() -> None:
    """What a newcomer has to go through from the top to the ground."""
    above: dict[str, set[str]] = {}
    for name in MODULES:
        above.setdefault(room(name), set()).update({room(m) for m in inside(name)} - {room(name)})

    def height(r: str) -> int:
        return 1 + max((height(below) for below in above.get(r, ())), default=0)

    assert max(map(height, above)) <= LONGEST_CHAIN


@pytest.mark.parametrize("name", MODULES)
def test_no_private_name_crosses_files(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastdiff"):
            private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
            assert not private, f"{node.module}: {private}"


@pytest.mark.parametrize("name", [n for n in MODULES if room(n) in NUMPY_ONLY or n in NUMPY_ONLY])
def test_tables_need_numpy_alone(name: str) -> None:
    outside = {module.split(".")[0] for module in imports(name, MODULES[name])} - {"fastdiff", "__future__"}
    more = {"plot": {"PIL"}, "plan.picture": {"matplotlib"}, "solvers.method_names": {"typing_extensions"}}
    assert outside - set(sys.stdlib_module_names) <= {"numpy"} | more.get(name, set())


def test_the_import_checker_sees_what_it_should(tmp_path: Path) -> None:
    path = tmp_path / "dpm.py"
    path.write_text(
        "import os, torch.nn\nfrom . import base\nfrom ..ops import load\ndef f():\n    from fastdiff import loop\n"
    )
    assert imports("solvers.dpm", path) == {"os", "torch.nn", "fastdiff.solvers", "fastdiff.ops", "fastdiff.loop"}


def unsafe(tree: ast.AST) -> list[str]:
    """What in a module could run code that lies in data or in a string."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [
                name for name in names if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve")
            ]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "__import__", "torch.load", "os.system", "joblib.load"):
                found.append(called)
            found += [f"{called}({word.arg}=...)" for word in node.keywords if word.arg in ("allow_pickle", "shell")]
    return found


@pytest.mark.parametrize("name", MODULES)
def test_no_data_is_ever_executed(name: str) -> None:
    assert unsafe(ast.parse(MODULES[name].read_text(encoding="utf-8"))) == []


def test_the_search_for_unsafe_calls_finds_them() -> None:
    code = "import pickle\neval('1')\ntorch.load(p)\nnp.load(p, allow_pickle=True)\nmodel.eval()\nsafe.load(p)"
    assert unsafe(ast.parse(code)) == ["pickle", "eval", "torch.load", "np.load(allow_pickle=...)"]


def test_import_loads_nothing_that_it_does_not_need() -> None:
    heavy = {"triton", "matplotlib", "sklearn", "scipy", "PIL", "safetensors"}
    code = f"import sys, fastdiff; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_the_import_leaves_the_garbage_collector_as_it_is() -> None:
    for before in ("enable", "disable"):
        code = f"import gc; gc.{before}(); import fastdiff; print(gc.isenabled())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.strip() == str(before == "enable")


def test_sampling_reads_no_weights_of_the_demo() -> None:
    code = """
import os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import fastdiff
fastdiff.sample(lambda x, t: 0.5 * x, shape=(1, 4), steps=3, schedule="ddpm")
print([path for path in opened if path.endswith(".safetensors") or f"fastdiff{os.sep}demo" in path])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive, and the wheel without extension modules that is built from it."""
    pytest.importorskip("setuptools", minversion="77")
    here = tmp_path_factory.mktemp("built")
    tree = here / "tree"
    tree.mkdir()
    for name in ("fastdiff", "triton_kernels", "csrc", "tools", "tests"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and path.suffix not in (".png", ".zip"):
            shutil.copy2(path, tree)
    env = os.environ | {"FASTDIFF_CPU": "0", "FASTDIFF_CUDA": "0"}

    def build(kind: str, folder: Path) -> Path:
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(here)!r})"
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (made,) = here.glob("*.tar.gz" if kind == "sdist" else "*.whl")
        return made

    sdist = build("sdist", tree)
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive.getmembers() if not (member.isfile() or member.isdir())]
        archive.extractall(here, **({"filter": "data"} if sys.version_info >= (3, 12) else {}))
    return sdist, build("wheel", here / sdist.name.removesuffix(".tar.gz"))


symlinks = pytest.mark.skipif(not (PACKAGE / "_triton").is_dir(), reason="the checkout has no symbolic links")


@symlinks
def test_a_wheel_from_the_source_archive_is_fit_to_publish(built: tuple[Path, Path]) -> None:
    assert tool("check_wheel").problems(str(built[1])) == []


@symlinks
def test_the_wheel_holds_every_module_and_the_same_text(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        for name, path in MODULES.items():
            entry = f"fastdiff/{name.replace('.', '/')}.py"
            assert entry in names
            assert archive.read(entry) == path.read_bytes()
        assert {name.split("/")[0] for name in names if not name.startswith("fastdiff_sampler-")} == {"fastdiff"}
        points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "fastdiff = fastdiff.cli:main" in archive.read(points).decode()


@symlinks
def test_the_source_archive_builds_the_extension_modules(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources | {"setup.py", "CMakeLists.txt", "LICENSE", "fastdiff/_triton/stage.py"} <= names
    assert not [name for name in names if name.startswith("triton_kernels") or name.endswith((".so", ".pyc"))]


def fake_wheel(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def test_the_wheel_check_finds_what_is_wrong(tmp_path: Path) -> None:
    check = tool("check_wheel")
    info = "fastdiff_sampler-0.1.0.dist-info"
    header = b"{}"
    good = dict.fromkeys(check.NEEDED_FILES, b"") | {
        "fastdiff/demo/unet.safetensors": len(header).to_bytes(8, "little") + header,
        f"{info}/licenses/LICENSE": b"",
        f"{info}/WHEEL": b"Root-Is-Purelib: false",
    }
    assert check.problems(fake_wheel(tmp_path / "good.whl", good)) == []
    bad = good | {
        "triton_kernels/stage.py": b"",
        "fastdiff/_cpu.pyd": b"MZ\0KERNEL32.dll\0c10.dll\0",
        "fastdiff/demo/unet.safetensors": b"\x80\x04K\x01.",
    }
    del bad["fastdiff/_triton/stage.py"]
    found = check.problems(fake_wheel(tmp_path / "bad.whl", bad), require=("cpu", "cuda"))
    assert len(found) == 5
    for part in ("'triton_kernels'", "lacks fastdiff/_triton/stage.py", "links c10.dll", "safetensors", "'cuda'"):
        assert sum(part in line for line in found) >= 1, (part, found)


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_linked_libraries_are_seen() -> None:
    """torch's own extension module links libtorch: the check must refuse the likes of it."""
    pytest.importorskip("elftools")
    torch = pytest.importorskip("torch")
    check = tool("check_wheel")
    libraries, _ = check.linked(Path(torch._C.__file__).read_bytes())
    assert any(check.forbidden(library) and "torch" in library for library in libraries)


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_extension_modules_link_neither_torch_nor_cuda(backend: str) -> None:
    pytest.importorskip("elftools")
    spec = importlib.util.find_spec(f"fastdiff._{backend}")
    if spec is None or spec.origin is None:
        pytest.skip(f"fastdiff._{backend} is not built here")
    check = tool("check_wheel")
    libraries, paths = check.linked(Path(spec.origin).read_bytes())
    assert "libc.so.6" in libraries
    assert [library for library in libraries if check.forbidden(library)] == []
    # auditwheel's own, to the libraries that it packs beside the module.
    assert [path for path in paths if not path.startswith("$ORIGIN")] == []


def test_the_installed_version_is_the_one_in_the_source() -> None:
    metadata = pytest.importorskip("importlib.metadata")
    try:
        installed = metadata.version("fastdiff-sampler")
    except metadata.PackageNotFoundError:
        pytest.skip("fastdiff-sampler is not installed")
    text = (PACKAGE / "_version.py").read_text(encoding="utf-8")
    assert f'__version__ = "{installed}"' in text
    assert f"## [{installed}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
