#!/usr/bin/env bash
# Proves the limits of cgroup v2, also on a machine that has v1: boots
# Debian's kernel in an emulated machine (QEMU, no KVM) that sees this
# machine's files read-only, mounts v2 there, and runs in it
#   - `agentd check`, in the root of the tree, in a group of its own,
#     in one that it shares, and below one that is delegated
#   - the tests of limits and walls, named below
# All that is printed in there ends up in LOG, which is judged: each line
# of what must be said must be said. About four minutes, which few tests
# make shorter.
#
#   scripts/vm-cgroup-v2.sh [part of a test's name]...
#
# Ends with 75 where this machine cannot do it, and says why.
# Wants: apt-get (packages are fetched by name and unpacked into the
# cache, nothing is installed), dpkg, gzip, and root, for virtiofsd. The
# cache is AGENTD_PARTS_DIR, or ~/.cache/agentd-parts, as for
# scripts/real-parts.sh.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

# shellcheck source=scripts/parts-directory.sh
. scripts/parts-directory.sh
CACHE=$(parts_directory)/vm
readonly CACHE
# The machine, its firmware, the server of this machine's files, a shell
# for the first minute; then libraries that a minimal system lacks.
readonly PACKAGES='qemu-system-x86 qemu-system-common qemu-system-data seabios busybox-static
  libaio1 libbpf1 libcapstone4 libfdt1 libfuse3-3 libglib2.0-0 libibverbs1 libjpeg62-turbo libnuma1
  libpixman-1-0 libpmem1 libndctl6 libdaxctl1 libpng16-16 librdmacm1 libsasl2-2 libslirp0 liburing2
  libvdeplug2 libnl-3-200 libnl-route-3-200 libcap-ng0 libseccomp2 libelf1'
readonly ALL_TESTS='memory_beyond_the_limit a_fork_bomb_stays cpu_time_is_counted
  a_program_has_no_more_than_its_share a_program_that_is_refused_more_processes
  what_a_program_leaves_behind files_outside_of_the_workspace processes_outside_are_neither
  temporary_files_are_the_call_s_own'

die() {
  echo "vm-cgroup-v2: $*" >&2
  exit 1
}

cannot() {
  echo "vm-cgroup-v2: not here: $*" >&2
  exit 75
}

# --- what is needed ------------------------------------------------------------------------------------

apt() {
  # Lists and archives of our own: the machine's are left alone.
  apt-get -q -o "Dir::State::Lists=$CACHE/lists" -o "Dir::Cache=$CACHE/apt" \
    -o APT::Sandbox::User=root "$@"
}

fetch() {
  [[ -e $CACHE/complete ]] && return
  mkdir -p "$CACHE"/{lists/partial,apt/archives/partial,debs,root}
  apt update >&2 || cannot "apt-get has no lists of packages"
  local kernel
  # No such package is no error of ours.
  kernel=$({ apt-cache -o "Dir::State::Lists=$CACHE/lists" -o "Dir::Cache=$CACHE/apt" \
    depends linux-image-cloud-amd64 2>/dev/null || true; } |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | sed 1q)
  [[ $kernel ]] || cannot 'there is no package linux-image-cloud-amd64; is this Debian?'
  # shellcheck disable=SC2086 # words
  (cd "$CACHE/debs" && apt download $PACKAGES "$kernel" >&2) || cannot 'the packages cannot be fetched'
  local deb
  for deb in "$CACHE"/debs/*.deb; do dpkg -x "$deb" "$CACHE/root"; done
  touch "$CACHE/complete"
}

# --- the machine's first minute ------------------------------------------------------------------------

# An archive that the kernel unpacks and runs: a shell, the modules for
# this machine's files, and the script that goes on with those, which
# lies in the directory already.
initramfs() {
  local image=$1 modules
  modules=$(echo "$CACHE"/root/lib/modules/*)
  mkdir -p "$image"/{bin,modules,host,proc}
  cp "$CACHE/root/bin/busybox" "$image/bin/busybox"
  local name
  for name in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci fuse virtiofs; do
    find "$modules" -name "$name.ko" -exec cp {} "$image/modules/" \;
  done
  cat >"$image/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
for name in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci fuse virtiofs; do
  [ -e /modules/$name.ko ] && /bin/busybox insmod /modules/$name.ko
done
/bin/busybox mount -t virtiofs -o ro host /host || /bin/busybox poweroff -f
for place in tmp run dev/shm; do [ -d /host/$place ] && /bin/busybox mount -t tmpfs none /host/$place; done
/bin/busybox mount -t devtmpfs dev /host/dev
/bin/busybox mount -t proc proc /host/proc
/bin/busybox mount -t sysfs sys /host/sys
/bin/busybox mount -t cgroup2 cgroup /host/sys/fs/cgroup
/bin/busybox cp /guest.sh /host/tmp/guest.sh
/bin/busybox umount /proc
exec /bin/busybox switch_root /host /bin/bash /tmp/guest.sh
INIT
  chmod +x "$image/init"
  (cd "$image" && find . | "$CACHE/root/bin/busybox" cpio -o -H newc 2>/dev/null | gzip)
}

# What is done once this machine's files are there.
guest() {
  local agentd=$1 it=$2
  cat <<GUEST
exec >/dev/ttyS0 2>&1
export HOME=/tmp PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
ip link set lo up
groups=/sys/fs/cgroup
check() { # what it is, and the command before that of the check
  local what=\$1; shift
  mkdir -p /tmp/\$what
  "\$@" $agentd check --state-dir /tmp/\$what/state --workspace-root /tmp/\$what \
    --base-url http://127.0.0.1:9/v1 2>&1 | sed -n "s/^.*limit \([a-z_]*: [a-z0-9_]*\).*/\$what \1/p"
}
in_group() { local group=\$1; shift; bash -c 'echo \$\$ >'\$group'/cgroup.procs; exec "\$@"' - "\$@"; }
check root
mkdir \$groups/alone && check alone in_group \$groups/alone
mkdir \$groups/shared && bash -c "echo \\\$\\\$ >\$groups/shared/cgroup.procs; exec sleep 600" & sleep 2
check shared in_group \$groups/shared
mkdir -p \$groups/unit/main
python3 -c "import os; os.setxattr('\$groups/unit', 'trusted.delegate', b'1')" 2>/dev/null ||
  perl -e 'syscall(188, "\$groups/unit", "trusted.delegate", "1", 1, 0) == 0 or die'
echo '+memory +pids +cpu' >\$groups/cgroup.subtree_control
check delegated in_group \$groups/unit/main
cd $PWD
for test in $(echo $TESTS); do
  timeout 300 $it --test-threads 1 "\$test" | grep -a '^test \|NOT CHECKED\|panicked' -A3
done
echo THE GUEST IS DONE
/bin/busybox poweroff -f 2>/dev/null || echo o >/proc/sysrq-trigger
sleep 60
GUEST
}

# --- boot, and judge -----------------------------------------------------------------------------------

boot() {
  local work=$1 log=$2 root=$CACHE/root
  export LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu
  # In mounts of its own, where all but the directory of its socket is read-only: the guest is root, and could
  # otherwise mount what it is given for writing.
  unshare -m --propagation private bash -c '
    mount --bind "$1" "$1"
    while read -r _ place _; do
      [[ $(printf %b "$place") == "$1" ]] || mount -o remount,bind,ro "$(printf %b "$place")" || true
    done <<<"$(cat /proc/self/mounts)" 2>/dev/null
    # It leaves a lock there.
    mount -t tmpfs none /run
    ! touch "$3" 2>/dev/null || exit 1
    exec "$2" --socket-path="$1/files" -o source=/ -o cache=auto -o sandbox=chroot' \
    - "$work" "$root/usr/lib/qemu/virtiofsd" "$CACHE/written" >"$work/virtiofsd.log" 2>&1 &
  local files=$!
  # shellcheck disable=SC2064 # the pid of now
  trap "kill $files 2>/dev/null || true; rm -rf '$work'" EXIT
  local n
  for ((n = 0; n < 100; n++)); do [[ -S $work/files ]] && break || sleep 0.1; done
  [[ -S $work/files ]] || die "the server of this machine's files does not start: $(cat "$work/virtiofsd.log")"
  timeout 900 "$root/usr/bin/qemu-system-x86_64" -accel tcg,thread=multi -M q35 -cpu max -smp 2 -m 2G \
    -object memory-backend-memfd,id=memory,size=2G,share=on -numa node,memdev=memory \
    -chardev "socket,id=files,path=$work/files" -device vhost-user-fs-pci,chardev=files,tag=host \
    -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" -nic none -display none -no-reboot \
    -serial stdio -monitor none -kernel "$(echo "$root"/boot/vmlinuz-*)" -initrd "$work/initramfs" \
    -append "console=ttyS0 quiet panic=-1" </dev/null >"$log" 2>&1 ||
    die "the machine did not come to its end; see $log"
}

judge() {
  local log=$1 missing=0 line
  local expected=()
  for resource in memory processes cpu_share cpu; do
    expected+=("root $resource: cgroup_v2" "alone $resource: cgroup_v2" "delegated $resource: cgroup_v2")
  done
  # Who is not alone in its group may not take it over, and says what is left.
  expected+=('shared memory: polled' 'shared processes: polled' 'shared cpu: cgroup_v2')
  for name in $TESTS; do expected+=("test .*$name.* ok"); done
  expected+=('THE GUEST IS DONE')
  for line in "${expected[@]}"; do
    if ! grep -aq "$line" "$log"; then
      echo "never said: $line" >&2
      missing=1
    fi
  done
  if grep -a '^test .*FAILED' "$log" >&2; then missing=1; fi
  if grep -aq 'NOT CHECKED' "$log"; then
    grep -a 'NOT CHECKED' "$log" >&2
    missing=1
  fi
  return $missing
}

main() {
  [[ $EUID == 0 ]] || cannot 'takes root, for the server of this machine'\''s files'
  [[ $(uname -m) == x86_64 ]] || cannot 'the machine that is emulated is x86_64'
  # In there, these are directories of its own.
  [[ $PWD != /tmp/* && $PWD != /run/* ]] || cannot 'the project lies in a temporary directory'
  readonly TESTS=${*:-$ALL_TESTS}
  fetch
  local it agentd work log
  cargo test --locked --test it --no-run || die 'the tests cannot be built'
  it=$(cargo test --locked --test it --no-run --message-format json 2>/dev/null |
    sed -n 's/.*"name":"it".*"executable":"\([^"]*\)".*/\1/p' | tail -1)
  [[ $it ]] || die 'cargo does not say where the tests are'
  agentd=$(dirname "$(dirname "$it")")/agentd
  work=$(mktemp -d "$CACHE/work.XXXXXX")
  log=$CACHE/log
  mkdir "$work/image"
  guest "$agentd" "$it" >"$work/image/guest.sh"
  initramfs "$work/image" >"$work/initramfs"
  boot "$work" "$log"
  judge "$log" || die "cgroup v2 does not keep what it must; see $log"
  echo "cgroup v2: every limit holds; $(grep -ac '^test .* \.\.\. ok' "$log") tests and $(grep -ac 'cgroup_v2' "$log") mechanisms in $log"
}

main "$@"
