"""Builds the extension modules with CMake and Ninja; the metadata is in pyproject.toml.

FASTDIFF_CPU=0|1|auto and FASTDIFF_CUDA=0|1|auto (default auto): leave a module out, insist on it, or build it where
there is a compiler: for C++ that of CXX or PATH, for CUDA nvcc (CUDACXX, CUDA_HOME or PATH). Without one, auto leaves
the module out with a notice, and the package says so when it is first used. A build that fails although there is a
compiler fails the install. FASTDIFF_CUDA_ARCHITECTURES overrides the architectures, in CMake's notation.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = "80;90-real;100-real;120"
"""Machine code for Ampere to Blackwell; PTX of the first and the last serves what lies between and after."""


def choice(name: str) -> str:
    """The environment variable's value: "0", "1" or "auto"."""
    value = os.environ.get(name, "auto")
    if value not in ("0", "1", "auto"):
        raise SystemExit(f"{name}={value!r}: expected 0, 1 or auto")
    return value


def known_architectures(nvcc: str) -> str:
    """Those of `ARCHITECTURES` that this nvcc compiles for: 12.8 is the first with Blackwell."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout
    known = set(re.findall(r"compute_(\d+)", listed))
    return ";".join(a for a in ARCHITECTURES.split(";") if not known or a.split("-")[0] in known)


def find_nvcc() -> str | None:
    """Path of nvcc, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    inside = str(Path(home) / "bin" / "nvcc") if home else None
    for candidate in (os.environ.get("CUDACXX"), inside, "nvcc", "/usr/local/cuda/bin/nvcc"):
        found = shutil.which(candidate) if candidate else None
        if found:
            return found
    return None


def find_compiler() -> str | None:
    """Path of a C++ compiler, or None."""
    for candidate in (*os.environ.get("CXX", "").split()[:1], "c++", "g++", "clang++", "cl"):
        found = shutil.which(candidate)
        if found:
            return found
    return None


def tool(name: str) -> str:
    """Path of cmake or ninja: of the package that the build requires, else of the system."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name) or name


class CMakeBuild(build_ext):
    """One CMake build for each module, so that one can be left out without the other."""

    def build_extension(self, ext: Extension) -> None:
        short = ext.name.rpartition(".")[2]
        wanted = choice("FASTDIFF" + short.upper())
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        setting = "FASTDIFF" + short.upper()
        # A leftover of an earlier build must not be packed instead.
        target.unlink(missing_ok=True)
        why = f"{setting}=0" if wanted == "0" else self._lacking(short)
        if why and wanted != "1":
            print(f"fastdiff: {ext.name} is left out: {why}", file=sys.stderr)
            return
        try:
            self._build(short, target)
        except (ImportError, OSError, RuntimeError) as error:
            target.unlink(missing_ok=True)
            raise SystemExit(f"{ext.name} could not be built ({setting}=0 leaves it out): {error}") from error

    @staticmethod
    def _lacking(short: str) -> str:
        """Why the module cannot be built here, or nothing."""
        if short == "_cuda" and find_nvcc() is None:
            return "no nvcc was found in CUDACXX, CUDA_HOME or PATH"
        return "" if find_compiler() else "no C++ compiler was found in CXX or PATH"

    def _build(self, short: str, target: Path) -> None:
        import pybind11

        flags = [
            f"-DFASTDIFF_BUILD_CPU={'ON' if short == '_cpu' else 'OFF'}",
            f"-DFASTDIFF_BUILD_CUDA={'ON' if short == '_cuda' else 'OFF'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DPYBIND11_FINDPYTHON=ON",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY_RELEASE={target.parent}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        ]
        archs = re.findall(r"-arch (\S+)", os.environ.get("ARCHFLAGS", ""))
        if sys.platform == "darwin" and archs:
            flags.append(f"-DCMAKE_OSX_ARCHITECTURES={';'.join(archs)}")
        if short == "_cuda":
            nvcc = find_nvcc()
            if nvcc is None:
                raise RuntimeError("no nvcc was found in CUDACXX, CUDA_HOME or PATH")
            architectures = os.environ.get("FASTDIFF_CUDA_ARCHITECTURES") or known_architectures(nvcc)
            flags += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DFASTDIFF_CUDA_ARCHITECTURES={architectures}"]
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(self.build_temp).resolve() / f"{short}-{sys.implementation.cache_tag}"
        configure = [tool("cmake"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *flags]
        build = [tool("cmake"), "--build", str(folder)]
        if folder.exists():
            try:
                self._call(configure)
                return self._call(build)
            except RuntimeError:
                # What an earlier build left may be of another place or compiler: only a fresh one decides.
                shutil.rmtree(folder)
        folder.mkdir(parents=True)
        self._call(configure)
        self._call(build)

    def _call(self, command: list[str]) -> None:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode:
            last = "\n".join(done.stdout.splitlines()[-30:])
            raise RuntimeError(f"`{' '.join(command[:3])} ...` failed:\n{last}")

    def get_outputs(self) -> list[str]:
        """Only what was built."""
        return [path for path in super().get_outputs() if Path(path).exists()]

    def copy_extensions_to_source(self) -> None:
        """For editable installs: copies what was built, since setuptools insists on all of them."""
        built = [ext for ext in self.extensions if Path(self.build_lib, *ext.name.split(".")[:-1]).exists()]
        built = [ext for ext in built if Path(self.get_ext_fullpath_in_build(ext.name)).exists()]
        every, self.extensions = self.extensions, built
        try:
            super().copy_extensions_to_source()
        finally:
            self.extensions = every

    def get_ext_fullpath_in_build(self, name: str) -> str:
        """Where `name` lies in the build folder, whether or not the build is in place."""
        return str(Path(self.build_lib, self.get_ext_filename(name)))


setup(
    ext_modules=[Extension(f"fastdiff.{short}", sources=[], optional=False) for short in ("_cpu", "_cuda")],
    cmdclass={"build_ext": CMakeBuild},
)
