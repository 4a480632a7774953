import pickle

import pytest

from whisperkit_tools import errors
from whisperkit_tools.errors import BundleError, OptionsError, QualityGateError, WktError, option, show_options


def test_a_message_names_options_as_keywords_in_python():
    error = OptionsError(f"{option('kv_length')} is 4; omit it, or add {option('force', True)}")
    assert str(error) == "kv_length is 4; omit it, or add force=True"
    assert error.options == ("kv_length", "force")
    assert WktError("plain").options == ()


def test_a_front_end_spells_them_its_own_way():
    message = f"use {option('bits', 8)} or {option('target_size')}"
    assert show_options(message, lambda field, value: f"<{field}|{value}>") == "use <bits|8> or <target_size|None>"
    assert show_options("nothing to spell") == "nothing to spell"


def test_values_may_hold_anything_that_users_type():
    value = "a=b {x} %s <y> --flag"
    assert str(BundleError(option("output_dir", value))) == f"output_dir={value}"


def test_errors_cross_processes_with_their_marks():
    error = pickle.loads(pickle.dumps(QualityGateError(f"raise {option('qoi_min')}")))
    assert (str(error), error.options, error.exit_code) == ("raise qoi_min", ("qoi_min",), 3)


@pytest.mark.parametrize(
    ("name", "code"), [("WktError", 1), ("OptionsError", 2), ("BundleError", 1), ("QualityGateError", 3)]
)
def test_exit_codes(name, code):
    assert getattr(errors, name).exit_code == code
