"""Exit with the reason where there is no CUDA device that torch can use; name the device where there is one."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        import torch
    except ImportError as error:
        sys.exit(f"no GPU: {sys.executable} cannot import torch ({error}); for another Python: make gpu PYTHON=...")
    if not torch.cuda.is_available():
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a build without CUDA"
        sys.exit(f"no GPU: torch {torch.__version__} {build} and finds no CUDA device; `make test` needs none")
    major, minor = torch.cuda.get_device_capability()
    print(f"{torch.cuda.get_device_name()}, sm_{major}{minor}, torch {torch.__version__}, CUDA {torch.version.cuda}")


if __name__ == "__main__":
    main()
