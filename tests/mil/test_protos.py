"""coremltools' message classes without coremltools."""

import subprocess
import sys


def test_message_classes_are_those_of_coremltools() -> None:
    code = (
        "from whisperkit_tools.mil.protos import model_proto; alone = model_proto(); "
        "from whisperkit_tools.mil.coreml import import_coremltools; import_coremltools(); "
        "print(model_proto() is not alone, model_proto().Model is alone.Model)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
