#!/bin/sh
# Installs what scripts/debian-packages.txt lists and this machine lacks. Without the right to install (neither root nor
# sudo without a password), or where apt is not the way, it says what is missing and lets the tests that need it skip;
# under CI that is a failure, because a skipped test there would look like a passed one.
set -u
here=$(dirname "$0")

installed() {
    dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed
}

give_up() {
    echo "Debian packages missing: $missing" >&2
    echo "$1" >&2
    [ -z "${CI:-}" ]
    exit $?
}

missing=
for package in $(sed 's/#.*//' "$here/debian-packages.txt"); do
    installed "$package" || missing="$missing $package"
done
missing=${missing# }
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || give_up "There is no apt-get here: install them by this system's own means."
as_root=
if [ "$(id -u)" -ne 0 ]; then
    as_root="sudo --non-interactive"
    $as_root true 2>/dev/null || give_up "Install them with: sudo apt-get install $missing"
fi

echo "==> Debian packages: $missing"
# The services inside (Apache, nginx, nghttpx) need not start: the tests run their own, on ports of their own. RUNLEVEL=1 says so to
# invoke-rc.d where no systemd runs, as in containers; under systemd Debian starts them all the same.
apt="$as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -o DPkg::Lock::Timeout=300"
# shellcheck disable=SC2086  # the words are meant to split
if ! { $apt update && $apt install --yes --no-install-recommends $missing >/dev/null; }; then
    give_up "apt-get could not install them; its message is above."
fi
