#!/bin/sh
# Build the wheel, install it alone into a fresh environment outside the checkout, and run it there: what works in a
# checkout can be missing from the wheel. The dependencies come from the environment that runs the tests.
set -eu
bin=${BIN:?set BIN to the folder with the python of the test environment}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$bin/python" -m build --wheel --outdir "$work/dist" . > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$bin/python" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --no-deps "$work"/dist/*.whl
packages_of='import sysconfig; print(sysconfig.get_path("purelib"))'
dependencies=$("$bin/python" -c "$packages_of")
installed=$("$work/env/bin/python" -c "$packages_of")
# A .pth entry comes after the fresh environment's own packages, and does not run the editable install's hook.
echo "$dependencies" > "$installed/dependencies.pth"
cd "$work"
where=$("$work/env/bin/python" -c 'import whisperkit_tools; print(whisperkit_tools.__path__[0])')
case "$where" in
  "$installed"/*) ;;
  *) echo "the wheel is not what is imported: $where"; exit 1 ;;
esac
"$work/env/bin/wkt" --version
"$work/env/bin/wkt" convert demo -o bundles
"$work/env/bin/wkt" lint bundles/* > lint.txt
text=$("$work/env/bin/wkt" transcribe --language en "$where/demo/audio/en_00.flac")
test -n "$text"
echo "wheel: converted the demo and transcribed: $text"
