#!/bin/sh
# Prints the path of the first Python, of the versions asked for, that runs and can make a virtual environment.
#
#   scripts/find_python.sh 3.13 3.12      -> /usr/bin/python3.12
#
# Each candidate is run rather than only found: a pyenv shim exists for versions that it then refuses to start, and
# Debian's python3 without python3-venv cannot make an environment.
set -u

usable() { # COMMAND VERSION
    "$1" -c "
import ensurepip, sys, venv
assert sys.version_info[:2] == tuple(map(int, '$2'.split('.')))
print(sys.executable)" 2>/dev/null
}

for version in "$@"; do
    for candidate in "python$version" python3 \
        "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python \
        /root/.pyenv/versions/"$version".*/bin/python; do
        if usable "$candidate" "$version"; then
            exit 0
        fi
    done
done

echo "no usable Python of version $(echo "$*" | sed 's/ /, /g') found (with its venv module)" >&2
exit 1
