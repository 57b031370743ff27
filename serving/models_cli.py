"""``nvisa-models``: the versions of a model repository, and the labels that say which of them answers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from serving.bundle import BundleError
from serving.label_files import Listed, change_labels, list_versions, roll_back
from serving.labels import LABELS, Labels, LabelsError, write_labels

_WHEN = (
    "Servers with --model-control poll or explicit take it within two of their --poll-seconds, others when "
    "they start."
)
Change = tuple[str, dict[str, object] | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 done, 1 refused or not as it should be, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (BundleError, LabelsError, OSError) as error:
        print(f"nvisa-models: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nvisa-models", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="{list,label,rollback}")
    text = "list versions, their labels, and what is wrong with them; exit status 1 if anything is"
    shown = commands.add_parser("list", help=text, description=text)
    shown.set_defaults(run=_list)
    shown.add_argument("repository", type=Path, help="folder of bundles, <name>/<version>/")
    shown.add_argument("--json", action="store_true", help="print JSON")
    text = "set labels of a model; those that are not named stay"
    label = commands.add_parser("label", help=text, description=f"{text}. {_WHEN}")
    label.set_defaults(run=_label)
    _add_model(label)
    label.add_argument(
        "changes",
        nargs="+",
        type=_change,
        metavar="LABEL=VERSION",
        help="stable=3, canary=4:10%% (answers a tenth of the calls that name no version), shadow=5; "
        "canary= takes the label away",
    )
    text = "put back the labels from before the last change; twice: undo that"
    back = commands.add_parser("rollback", help=text, description=f"{text}. {_WHEN}")
    back.set_defaults(run=_rollback)
    _add_model(back)
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("repository", type=Path, help="folder of bundles, <name>/<version>/")
    command.add_argument("name", help="name of the model")


def _change(text: str) -> Change:
    label, sign, value = text.partition("=")
    if not sign or label not in LABELS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not LABEL=VERSION with a label of {', '.join(LABELS)}; such as stable=3"
        )
    if not value:
        return label, None
    version, colon, share = value.partition(":")
    if not version.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: {version!r} is not the number of a version")
    if not colon:
        return label, {"version": int(version)}
    if label != "canary":
        raise argparse.ArgumentTypeError(f"{text!r}: only the canary has a share")
    return label, {"version": int(version), "share": _share(text, share)}


def _share(text: str, share: str) -> float:
    try:
        return float(share[:-1]) / 100 if share.endswith("%") else float(share)
    except ValueError:
        message = f"{text!r}: {share!r} is not a share, such as 10% or 0.1"
        raise argparse.ArgumentTypeError(message) from None


def _list(options: argparse.Namespace) -> int:
    listed, problems = list_versions(options.repository)
    if options.json:
        shown = [
            {"name": v.name, "version": v.version, "labels": list(v.labels), "problem": v.problem or None}
            for v in listed
        ]
        print(json.dumps({"versions": shown, "label_problems": problems}, indent=2))
    else:
        for version in listed:
            print(_line(version))
        for problem in problems.values():
            print(f"labels: {problem}")
    return int(bool(problems) or any(version.problem for version in listed))


def _line(version: Listed) -> str:
    labels = f" [{', '.join(version.labels)}]" if version.labels else ""
    manifest = version.manifest
    what = version.problem
    if manifest is not None:
        shape = list(manifest.input.shape)
        what = f"{manifest.n_clusters} clusters of {manifest.input.dtype} {shape}, {manifest.created}"
    return f"{version.name}/{version.version}{labels}: {what}"


def _label(options: argparse.Namespace) -> int:
    changes = dict(options.changes)
    if len(changes) < len(options.changes):
        raise LabelsError("a label is named twice")
    _show(options.name, change_labels(options.repository, options.name, changes))
    return 0


def _rollback(options: argparse.Namespace) -> int:
    _show(options.name, roll_back(options.repository, options.name))
    return 0


def _show(name: str, labels: Labels | None) -> None:
    print(f"labels of {name}:")
    print(
        write_labels(labels).decode() if labels is not None else "none; the largest version answers\n", end=""
    )


if __name__ == "__main__":
    sys.exit(main())
