#!/bin/sh
# Installs the Debian packages that the lab, the tests and the environment stand on; silent when nothing is missing.
set -eu

packages="
slapd ldap-utils
libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system libvirt-clients
qemu-system-x86 qemu-utils qemu-guest-agent seabios ovmf swtpm swtpm-tools
linux-image-cloud-amd64 busybox-static cpio xz-utils kmod
gcc libc6-dev pkg-config python3-dev python3-venv libvirt-dev
util-linux procps e2fsprogs xfsprogs fuse3
"

missing=""
for package in $packages; do
    state=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$state" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "missing packages:$missing - run this as root, or install sudo" >&2; exit 1; }
    as_root="sudo"
fi

# A package's own daemon must not start: the lab runs private ones. Left alone where an admin has such a file already.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
    trap '$as_root rm -f "$policy"' EXIT
fi

echo "== installing Debian packages:$missing"
$as_root apt-get update -qq
echo "$missing" | $as_root env DEBIAN_FRONTEND=noninteractive xargs apt-get install -y -qq --no-install-recommends >/dev/null
