"""Writes what score.lua asks: bodies.py DIRECTORY PROMPTS makes DIRECTORY/FORM-LENGTH/PROMPT for each form and length."""

import json
import pathlib
import struct
import sys

from publish import LENGTHS, tokens


def main():
    directory, prompts = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    for length in LENGTHS:
        for form in ("json", "binary"):
            (directory / f"{form}-{length}").mkdir()
        for prompt in range(prompts):
            ids = tokens(prompt, length)
            body = json.dumps({"model": "m", "token_ids": ids}, separators=(",", ":"))
            (directory / f"json-{length}" / str(prompt)).write_text(body)
            (directory / f"binary-{length}" / str(prompt)).write_bytes(struct.pack(f"<{length}I", *ids))


if __name__ == "__main__":
    main()
