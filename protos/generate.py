"""Generates ``serving/pb`` from the ``.proto`` files here: ``python protos/generate.py [OUTPUT]``.

The code is checked in, so that installing the package needs no compiler; a test generates it anew and
compares. OUTPUT stands for the checkout's root and is only given by that test.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent


def generate(output: Path) -> None:
    """Write ``serving/pb/**/*_pb2{,_grpc}.py`` and ``.pyi`` below ``output``.

    Raises
    ------
    RuntimeError
        If the compiler fails; it has then printed why.
    """
    # The virtual path makes the generated modules import each other as `serving.pb...`.
    arguments = ["protoc", f"-Iserving/pb={PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
    arguments += [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
    arguments += [f"serving/pb/{path.relative_to(PROTOS)}" for path in sorted(PROTOS.rglob("*.proto"))]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed; see above")
    # Ordinary packages, so that a plain `import` and setuptools both find them.
    for module in (output / "serving" / "pb").rglob("*_pb2.py"):
        for package in (module.parent, *module.parent.parents):
            (package / "__init__.py").touch()
            if package == output / "serving" / "pb":
                break


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS.parent)
