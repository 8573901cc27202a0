#!/bin/sh
# Installs a package of the system unless the file that it brings is there already:
#     sh tools/need.sh PACKAGE FILE
# Debian and Ubuntu. Anywhere else it says what is missing and how the build can do without asking.
package=$1
file=$2
[ -e "$file" ] && exit 0
if command -v apt-get >/dev/null 2>&1; then
    echo "installing $package (for $file)"
    as_root=
    [ "$(id -u)" = 0 ] || as_root=sudo
    export DEBIAN_FRONTEND=noninteractive
    $as_root apt-get install -y -qq "$package" >/dev/null 2>&1 ||
        { $as_root apt-get update -qq && $as_root apt-get install -y -qq "$package" >/dev/null; }
fi
[ -e "$file" ] && exit 0
echo "need.sh: $file is missing; install the package that brings it ($package on Debian)" >&2
exit 1
