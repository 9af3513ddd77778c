# Arguments: merged root, apt cache, overlay options, packages, script. Runs in a mount namespace of its own.
root=$1 cache=$2 options=$3 packages=$4 script=$5
mount -t overlay overlay -o "$options" "$root"
mount -t proc proc "$root/proc"
# Open to root alone: in a folder that all may write to, not even root may open somebody else's file anew.
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
    : >"$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir -p "$root/dev/shm"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$cache/lists" "$root/var/lib/apt/lists"
mount -t tmpfs tmpfs "$root/var/cache/apt"
mkdir "$root/var/cache/apt/archives"
mount --bind "$cache/archives" "$root/var/cache/apt/archives"
mount -t tmpfs tmpfs "$root/var/log/apt"
mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
mount --bind /etc/hosts "$root/etc/hosts"
if [ -n "$packages" ]; then
    # shellcheck disable=SC2086
    install="apt-get install -qq -y --no-install-recommends -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 -o APT::Keep-Downloaded-Packages=true"
    # Lists go stale when the mirror moves on; refresh them once then.
    chroot "$root" $install $packages || { chroot "$root" apt-get update -qq; chroot "$root" $install $packages; }
fi
if [ -n "$script" ]; then
    chroot "$root" /bin/sh -eu -c "$script"
fi
rm -f "$root"/var/log/dpkg.log "$root"/var/log/alternatives.log "$root"/var/cache/ldconfig/aux-cache
rm -f "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old
find "$root/usr" -name __pycache__ -type d -prune -exec rm -rf {} +
sync -f "$root"
