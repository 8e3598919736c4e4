"""Which device is current around a launch, and what is put back: csrc/cuda/current.h with a runtime that is played."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

RUNTIME = r"""
#pragma once
#include <string>
#define CUDART_VERSION 13000
typedef int cudaError_t;
typedef int cudaDriverEntryPointQueryResult;
enum { cudaSuccess = 0, cudaErrorInsufficientDriver = 35, cudaErrorInvalidDevice = 101, cudaEnableDefault = 0 };
inline long context = 0;  // the driver's current one: 0 is none, device d has 100 + d
inline std::string made;  // devices on which the runtime made a context
inline bool driver = true;
inline int get_context(void **to) { return *to = reinterpret_cast<void *>(context), 0; }
inline int get_device(int *to) { return *to = int(context - 100), context ? 0 : 201; }
inline int set_context(void *to) { return context = reinterpret_cast<long>(to), 0; }
inline int cudaSetDevice(int device) {
  if (device > 1) return cudaErrorInvalidDevice;
  made += char('0' + device);
  context = 100 + device;
  return 0;
}
inline int cudaGetDriverEntryPointByVersion(const char *name, void **to, unsigned, int, int *) {
  const std::string wanted = name;
  if (!driver) return cudaErrorInsufficientDriver;
  *to = wanted == "cuCtxGetCurrent" ? reinterpret_cast<void *>(get_context)
        : wanted == "cuCtxGetDevice" ? reinterpret_cast<void *>(get_device)
                                     : reinterpret_cast<void *>(set_context);
  return 0;
}
"""
MAIN = r"""
#include <cstdio>
#include <cstdlib>
#include "cuda/current.h"
int main(int, char **given) {
  context = atol(given[1]);
  driver = given[3][0] == '1';
  long inside = 0;
  int error = 0;
  {
    const fastdiff::Current current{atoi(given[2])};
    inside = context, error = current.error();
  }
  printf("%ld %ld %d %s\n", inside, context, error, made.c_str());
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++") or shutil.which("c++") or pytest.skip("there is no C++ compiler")
    folder, csrc = tmp_path_factory.mktemp("current"), Path(__file__).resolve().parents[1] / "csrc"
    (folder / "cuda_runtime_api.h").write_text(RUNTIME)
    (folder / "main.cpp").write_text(MAIN)
    command = [compiler, "-std=c++17", f"-I{folder}", f"-I{csrc}", str(folder / "main.cpp"), "-o", str(folder / "main")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder / "main"


@pytest.mark.parametrize(
    ("before", "device", "inside", "made"),
    [
        (100, 0, 100, ""),  # GPU 0 is current: nothing to do
        (100, 1, 101, "1"),
        (101, 0, 100, "0"),
        (0, 1, 101, "1"),  # nothing was: GPU 0 gets no context
        (0, 0, 100, "0"),
    ],
)
def test_what_was_current_is_put_back(program: Path, before: int, device: int, inside: int, made: str) -> None:
    run = subprocess.run([program, str(before), str(device), "1"], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(inside), str(before), "0", *([made] if made else [])]


def test_errors_are_given(program: Path) -> None:
    run = subprocess.run([program, "100", "7", "1"], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["100", "100", "101"]  # no such device
    run = subprocess.run([program, "0", "0", "0"], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0", "0", "35"]  # no driver
