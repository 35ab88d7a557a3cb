#!/bin/sh
# Says what is missing for `make demo` and `make test`, and how to get it.
set -u
missing=0
lacking() {
    printf 'missing: %s\n    %s\n' "$1" "$2" >&2
    missing=1
}
PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    lacking "Python 3.10 or newer ($PYTHON is not)" "Debian: apt-get install python3; or name one: make PYTHON=/path/to/python3.12"
elif ! "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null; then
    lacking "Python's venv module" "Debian: apt-get install python3-venv"
fi
command -v cc >/dev/null 2>&1 || lacking "a C compiler (cc)" "Debian: apt-get install build-essential; macOS: xcode-select --install"
wanted=1.95
if ! command -v cargo >/dev/null 2>&1; then
    lacking "Rust $wanted or newer (cargo)" "install it with rustup: https://rustup.rs"
else
    found=$(rustc --version | cut -d' ' -f2)
    oldest=$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)
    [ "$oldest" = "$wanted" ] || lacking "Rust $wanted or newer (this is $found)" "update it: rustup update stable"
fi
exit $missing
