#!/bin/sh
# Build the wheel, install it alone into a fresh environment outside the checkout, and run it there: what works in a
# checkout can be missing from the wheel. The dependencies come from the environment that runs the tests.
set -eu
bin=${BIN:?the folder with the test environment's python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$bin/python" -m build --wheel --outdir "$work/dist" . > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$bin/python" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --no-deps "$work"/dist/*.whl
site=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
cd "$work"
export PYTHONPATH=
# A .pth entry comes after the fresh environment's own packages, and does not run the editable install's hook.
echo "$site" > "$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/dependencies.pth"
where=$("$work/env/bin/python" -c 'import whisperkit_tools; print(whisperkit_tools.__file__)')
case "$where" in "$work"/*) ;; *) echo "the wheel is not what is imported: $where"; exit 1 ;; esac
"$work/env/bin/wkt" --version
"$work/env/bin/wkt" convert demo -o bundles
"$work/env/bin/wkt" transcribe --language en "$(dirname "$where")/demo/audio"/en_00.* > text.txt
test -s text.txt
echo "wheel: converted the demo and transcribed: $(cat text.txt)"
