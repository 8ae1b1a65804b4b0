"""Refuse what other programs call otherwise, and what is misspelt, with the right words."""

import os
import re
import shlex
from typing import Dict, List, NamedTuple, Sequence, Set

from tood.utils.arguments import KEYS as KEYS_OF_CONFIGS
from tood.utils.errors import UserError
from tood.utils.suggest import suggest

# Flags of other detection frameworks, and what they are called here, if the command has it: a flag,
# a positional argument, or a key of the config.
FOREIGN = {
    **dict.fromkeys(("conf", "conf-thres", "conf-thresh", "confidence"), "--score-threshold"),
    **dict.fromkeys(("score-thr", "threshold"), "--score-threshold"),
    **dict.fromkeys(("imgsz", "img-size", "img", "size", "resolution"), "--image-size"),
    **dict.fromkeys(("batch-size", "samples-per-gpu"), "--batch"),
    **dict.fromkeys(("lr0", "learning-rate"), "--lr"),
    **dict.fromkeys(("arch", "architecture"), "--model"),
    **dict.fromkeys(("project", "name", "save-dir", "work-dir", "out", "outdir"), "--output"),
    **dict.fromkeys(("output-dir", "out-dir"), "--output"),
    **dict.fromkeys(("exist-ok", "force"), "--overwrite"),
    **dict.fromkeys(("cfg", "config", "cfg-file"), "--config-file"),
    **dict.fromkeys(("gpus", "ngpu"), "--num-gpus"),
    **dict.fromkeys(("val", "val-set"), "--val-data"),
    **dict.fromkeys(("save-txt", "save-json"), "--save-as"),
    **dict.fromkeys(("cls", "category"), "--class"),
    **dict.fromkeys(("data", "dataset", "data-path", "dataset-dir"), "DATA"),
    **dict.fromkeys(("source", "input", "image", "images"), "IMAGES"),
    **dict.fromkeys(("model", "weights", "checkpoint", "ckpt"), "MODEL"),
}
KEYS = {  # of names without a flag
    **dict.fromkeys(("workers", "num-workers"), "DATALOADER.NUM_WORKERS"),
    **dict.fromkeys(("iou", "iou-thres", "nms"), "MODEL.TOOD.NMS_THRESH_TEST"),
    **dict.fromkeys(("max-det", "max-detections"), "TEST.DETECTIONS_PER_IMAGE"),
    **dict.fromkeys(("weights", "checkpoint", "pretrained", "load-from"), "MODEL.WEIGHTS"),
}


_ASSIGNMENT = re.compile(rf"([A-Za-z]\w*|{KEYS_OF_CONFIGS.pattern})=(.*)")


class Words(NamedTuple):
    """The words of a command."""

    command: str  # "tood train"
    flags: Dict[str, bool]  # whether they take a value
    positional: Set[str]  # as the usage shows them
    takes_keys: bool  # KEY VALUE options


def refuse_unknown(words: Words, argv: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """
    Args:
        words: words of the command.
        argv: its command line, without KEY VALUE options.
        overrides: these options.

    Raises:
        UserError: for a flag that the command does not have, or NAME=VALUE in the place of one.
    """
    _refuse_assignments(words, argv, overrides)
    for word in argv[: argv.index("--") if "--" in argv else None]:
        name = word.partition("=")[0]
        if re.match(r"--?[A-Za-z]", word) and name not in words.flags:
            known = translate(words, name)
            hint = f"; write {known}." if known else suggest(name, words.flags)
            hint = hint or f"; {words.command} --help lists its flags."
            raise UserError(f"{words.command} has no flag {name}{hint}")


def _refuse_assignments(words: Words, argv: Sequence[str], overrides: Sequence[str]) -> None:
    """Raise UserError for NAME=VALUE, with the whole command as it is written here."""
    found = [_ASSIGNMENT.fullmatch(x) for x in argv]
    values = [words.flags.get(before, False) for before in ("", *argv)]  # of flags
    found = [
        None if os.path.exists(x) or is_value else match
        for x, match, is_value in zip(argv, found, values)
    ]
    typed = [match.group() for match in found if match]
    if not typed:
        return
    ours = {match: _write(words, *match.groups()) for match in found if match}
    if not all(ours.values()):
        text = next(match.group() for match, written in ours.items() if not written)
        raise UserError(f"{words.command} does not take {text}; write flags as --epochs 20.")
    rest = [[x] if match is None else ours[match] for x, match in zip(argv, found)]
    # First what stands alone, then flags, and options of the config last.
    rest.sort(key=lambda x: (len(x) > 1) + (len(x) > 1 and not x[0].startswith("-")))
    line = shlex.join([*(x for pair in rest for x in pair), *overrides])
    raise UserError(
        f"{words.command} does not take {', '.join(typed)}; write {words.command} {line}"
    )


def _write(words: Words, name: str, value: str) -> List[str]:
    """Return words of a command line for NAME=VALUE of other programs; none if it is not known."""
    if KEYS_OF_CONFIGS.fullmatch(name) and words.takes_keys:
        return [name, value]
    known = translate(words, name).split()
    if not known:
        return []
    if known[-1] == "flag":  # a positional argument
        return [value]
    return [x if x != "VALUE" else value for x in known if x not in ("at", "the", "end")]


def translate(words: Words, name: str) -> str:
    """Return what to write for a name of other programs, or "" if it is not known."""
    name = name.lstrip("-").replace("_", "-").lower()
    flag = f"--{name}" if f"--{name}" in words.flags else FOREIGN.get(name, "")
    if flag in words.flags:
        return f"{flag} VALUE" if words.flags[flag] else flag
    if flag in words.positional:
        return f"the {flag} without a flag"
    return f"{KEYS[name]} VALUE at the end" if name in KEYS and words.takes_keys else ""
