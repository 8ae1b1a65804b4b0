import math
import os

import pytest

from tood.utils.errors import UserError
from tood.utils.reading import guard_reading, open_regular, parse_number, read_regular


def test_a_regular_file_is_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    assert read_regular(str(path), limit=3) == b"abc"


def test_pipes_devices_and_folders_are_refused(tmp_path):
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    for path in (pipe, "/dev/zero", str(tmp_path)):
        with pytest.raises(UserError, match=f"{path} is not a regular file"), open_regular(path):
            pass


def test_sizes_are_bounded(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abcd")
    with pytest.raises(UserError, match=r"a\.txt has 0.0 MiB; at most 0.0"):
        read_regular(str(path), limit=3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.txt cannot be read: No such file or directory"):
        read_regular(str(tmp_path / "none.txt"), limit=3)


@pytest.mark.parametrize("error", [KeyError("a"), OverflowError("big"), MemoryError()])
def test_errors_of_any_kind_become_one_sentence(error):
    sentence = r"^f\.json cannot be read: .*; write it again\.$"
    with pytest.raises(UserError, match=sentence), guard_reading("f.json", "write it again"):
        raise error


def test_deep_nesting_is_named():
    def descend():
        return descend()

    with pytest.raises(UserError, match="nested too deeply"), guard_reading("f.json"):
        descend()


def test_interruptions_pass():
    with pytest.raises(KeyboardInterrupt), guard_reading("f.json"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("value", ["1", 1, 1.0, " 1 "])
def test_numbers_are_parsed(value):
    assert parse_number(value, 0, 1) == 1


@pytest.mark.parametrize(
    "value", [True, None, [], "nan", math.inf, 10**400, "9" * 5000, "a", 2, "-1", b"1"]
)
def test_other_values_are_not_numbers(value):
    with pytest.raises(ValueError, match="is not a number"):
        parse_number(value, 0, 1)
