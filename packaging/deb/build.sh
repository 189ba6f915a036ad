#!/bin/bash
# Builds dist/meshbox_VERSION_ARCH.deb on Debian 12; run it as root, or as a user who may make namespaces.
# DEBFULLNAME and DEBEMAIL: the maintainer that the package names.
#
# The environment is made at the path where it will be used, in a mount namespace of its own, so that nothing of it
# gets onto the build host.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ -z "${MESHBOX_INSIDE:-}" ]; then
    namespace=(unshare --mount --propagation private)
    [ "$(id -u)" -eq 0 ] || namespace+=(--map-root-user)
    mkdir -p dist
    MESHBOX_INSIDE=1 exec "${namespace[@]}" packaging/deb/build.sh
fi

version="$(sed -n 's/^__version__ = "\(.*\)"/\1/p' appliance/__init__.py)"
arch="$(dpkg --print-architecture)"
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}"
export SOURCE_DATE_EPOCH PYTHONDONTWRITEBYTECODE=1

mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/tree
mount -t overlay -o lowerdir=/usr/lib,upperdir=/mnt/upper,workdir=/mnt/work overlay /usr/lib
rm -rf /usr/lib/meshbox # where meshbox is installed
packaging/environment.sh /usr/lib/meshbox

tree=/mnt/tree
install -d "$tree/usr/lib" "$tree/usr/bin" "$tree/DEBIAN"
cp -a /usr/lib/meshbox "$tree/usr/lib/meshbox"
ln -s ../lib/meshbox/bin/meshbox "$tree/usr/bin/meshbox"
/usr/lib/meshbox/bin/python packaging/deb/documents.py "$tree"
install -D -m 644 packaging/deb/meshbox.service "$tree/lib/systemd/system/meshbox.service"
install -D -m 644 packaging/deb/lintian-overrides "$tree/usr/share/lintian/overrides/meshbox"
chmod -R u=rwX,go=rX "$tree"
chmod 640 "$tree/etc/meshbox/meshbox.toml" # it may get Consul's token

maintainer="$(zcat "$tree/usr/share/doc/meshbox/changelog.gz" | sed -n 's/^ -- \(.*>\)  .*/\1/p')"
size="$(du -sk --apparent-size --exclude=DEBIAN "$tree" | cut -f1)"
sed -e "s/@VERSION@/$version/; s/@ARCH@/$arch/; s|@MAINTAINER@|$maintainer|; s/@SIZE@/$size/" \
    packaging/deb/control >"$tree/DEBIAN/control"
echo /etc/meshbox/meshbox.toml >"$tree/DEBIAN/conffiles"
echo interest-noawait meshbox-start >"$tree/DEBIAN/triggers"
(cd "$tree" && find etc lib usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
install -m 755 packaging/deb/postinst packaging/deb/prerm packaging/deb/postrm "$tree/DEBIAN"
find "$tree" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

echo "meshbox: packing" >&2
dpkg-deb --root-owner-group -Zxz --build "$tree" "dist/meshbox_${version}_${arch}.deb"
