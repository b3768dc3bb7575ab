#!/usr/bin/env bash
# Proves what agentd is in a container: starts a Docker of its own, and in
# containers as that makes them, without a right more than anybody gets
# (its own seccomp profile, its own set of capabilities, or fewer), runs
#   - `agentd check`
#   - the tests named below, first of them the one of tests/it/tiers.rs
#     that says: the tier found is the tier told, recorded, had and kept
# as root, as an ordinary user, as one with a read-only root, and as one
# whose container was granted what the strongest tier takes. All that is
# printed in there ends up in LOG, which is judged: each line of what must
# be said must be said. Half a minute, and the building of the tests.
#
#   scripts/container.sh [part of a test's name]...
#
# Ends with 75 where this machine cannot do it, and says why.
# Wants: root, apt-get and dpkg (packages are fetched by name and unpacked
# into the cache, nothing is installed; a Docker that is installed is used
# as a program, its daemon is left alone). Everything runs in namespaces
# of its own, without a network, and is gone at the end. The cache is
# AGENTD_PARTS_DIR, or ~/.cache/agentd-parts, as for scripts/real-parts.sh.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

# shellcheck source=scripts/parts-directory.sh
. scripts/parts-directory.sh
CACHE=$(parts_directory)/container
readonly CACHE
# What the tests use. With all that they need, it is the whole image.
readonly PROGRAMS='bash coreutils dash findutils git grep hostname libgcc-s1 perl sed util-linux'

# By name: the tier that is to be found, and how the container is started.
readonly NAMES='root user bare granted'
declare -rA TIER=([root]=landlock [user]=landlock [bare]=landlock [granted]=full)
declare -rA OPTIONS=(
  [root]=''
  [user]='--user 1000:1000'
  [bare]='--user 1000:1000 --cap-drop ALL --security-opt no-new-privileges --read-only --tmpfs /tmp:exec'
  [granted]='--user 1000:1000 --security-opt seccomp=unconfined --security-opt systempaths=unconfined
    --security-opt apparmor=unconfined'
)
# What holds in both tiers, and what takes namespaces.
readonly EVERYWHERE='the_tier_that_is_found files_outside_of_the_workspace the_kernel_s_dangerous_calls
  no_file_can_be_made_that_would_run when_its_time_is_up_the_whole_tree what_a_program_leaves_behind
  nothing_that_a_killed_daemon_started
  a_program_s_environment a_program_s_input a_file_cannot_grow cpu_time_is_counted'
readonly NAMESPACED='nothing_outside_can_be_connected temporary_files_are a_program_can_talk_to_itself
  a_git_directory a_repository_s_git_directory a_program_has_no_capability'

die() {
  echo "container: $*" >&2
  exit 1
}

cannot() {
  echo "container: not here: $*" >&2
  exit 75
}

# --- what is needed ------------------------------------------------------------------------------------

apt() {
  # Lists and archives of our own: the machine's are left alone.
  apt-get -qq -y -o "Dir::State::Lists=$CACHE/lists" -o "Dir::Cache=$CACHE/apt" \
    -o APT::Sandbox::User=root --no-install-recommends "$@" >&2
}

fetch() {
  [[ -e $CACHE/complete ]] && return
  rm -rf "$CACHE"
  mkdir -p "$CACHE"/{lists/partial,apt/archives/partial,engine}
  apt update || cannot 'apt-get has no lists of packages'
  local deb
  if ! command -v dockerd >/dev/null; then
    # Those of its libraries that this machine lacks come with it.
    apt install --download-only docker.io || cannot 'the package docker.io cannot be fetched'
    for deb in "$CACHE"/apt/archives/*.deb; do dpkg-deb -x "$deb" "$CACHE/engine"; done
    rm -f "$CACHE"/apt/archives/*.deb
  fi
  # By the account of a machine that has nothing, so that nothing is left out.
  : >"$CACHE/nothing"
  # shellcheck disable=SC2086 # words
  apt -o "Dir::State::status=$CACHE/nothing" install --download-only $PROGRAMS ||
    cannot 'the packages of the image cannot be fetched'
  image "$CACHE/image"
  rm -rf "$CACHE"/{apt,lists}
  touch "$CACHE/complete"
}

# A small Debian: its packages, unpacked.
image() {
  local root=$1 name deb
  mkdir -p "$root"/{usr/{bin,sbin,lib,lib64},etc,proc,sys,dev,tmp}
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
  for deb in "$CACHE"/apt/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink --exclude './usr/share/doc' \
      --exclude './usr/share/locale' --exclude './usr/share/man' -C "$root"
  done
  # What the packages' own scripts would have made.
  ln -sf dash "$root/bin/sh"
  chmod 1777 "$root/tmp"
  echo 'root:x:0:0::/root:/bin/sh' >"$root/etc/passwd"
  echo 'root:x:0:' >"$root/etc/group"
  # Of no worth, but outside of every workspace, and readable: a control must be able to read it.
  echo 'root:*:1::::::' >"$root/etc/shadow"
}

# --- a Docker of our own -------------------------------------------------------------------------------

# Its processes, mounts and network are its own, and end with it.
start() {
  local work=$1 n
  # shellcheck disable=SC2016 # for the inner shell
  PATH=$CACHE/engine/usr/bin:$CACHE/engine/usr/sbin:$PATH \
    LD_LIBRARY_PATH=$CACHE/engine/usr/lib/$(uname -m)-linux-gnu \
    unshare --mount --pid --net --fork --kill-child --mount-proc bash -c '
      mount -t tmpfs none /run && exec dockerd --data-root "$1/data" --exec-root /run/docker \
        --pidfile /run/docker.pid -H "unix://$2/socket" --bridge none --iptables=false --ip-forward=false \
        --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$3"' \
    - "$work" "$SOCKETS" "$GROUP" >"$work/dockerd.log" 2>&1 &
  ENGINE=$!
  for ((n = 0; n < 300; n++)); do
    docker version >/dev/null 2>&1 && return
    kill -0 "$ENGINE" 2>/dev/null || break
    sleep 0.1
  done
  cannot "dockerd does not start: $(tail -1 "$work/dockerd.log")"
}

docker() {
  local client=$CACHE/engine/usr/bin/docker
  [[ -x $client ]] || client=$(type -P docker)
  DOCKER_HOST=unix://$SOCKETS/socket DOCKER_CONFIG=$SOCKETS "$client" "$@"
}

finish() {
  local n
  if [[ ${ENGINE:-} ]]; then
    kill -KILL "$ENGINE" 2>/dev/null || true
    wait "$ENGINE" 2>/dev/null || true
  fi
  # The groups of its containers, for as long as what has been killed in them has not ended.
  for ((n = 0; n < 50; n++)); do
    find /sys/fs/cgroup -depth -type d -path "*/$GROUP*" -exec rmdir {} + 2>/dev/null || true
    [[ $(find /sys/fs/cgroup -maxdepth 2 -name "$GROUP" | head -1) ]] || break
    sleep 0.1
  done
  rm -rf "$WORK" "$SOCKETS"
}

# --- run, and judge ------------------------------------------------------------------------------------

# What is done in the container. Its words begin with the container's name.
guest() {
  local name=$1 agentd=$2 it=$3 tests
  tests=$(tests_of "$name" | tr -s '\n ' ' ')
  cat <<GUEST
export HOME=/tmp
mkdir /tmp/check
{
  grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status
  $agentd check --state-dir /tmp/check/state --workspace-root /tmp/check --base-url http://127.0.0.1:9/v1 |
    sed -n 's/^.*limit \([a-z_]*: [a-z0-9_]*\).*/\1/p; s/^[A-Za-z]* *\(sandbox\|isolation [a-z]*\): /check: &/p'
  for test in $tests; do
    timeout 300 $it --test-threads 1 "\$test" 2>>/tmp/errors | grep '^test \|panicked' -A3 | grep .
  done
  cat /tmp/errors
} 2>&1 | sed 's/^/$name /'
GUEST
}

tests_of() {
  if [[ $TESTS ]]; then
    echo "$TESTS"
  elif [[ ${TIER[$1]} == landlock ]]; then
    echo "$EVERYWHERE"
  else
    echo "$EVERYWHERE $NAMESPACED"
  fi
}

run_in() {
  local name=$1 programs=$2 it=$3 minimum=''
  # Tests that are about something else make do with the tier that there is.
  [[ ${TIER[$name]} != landlock ]] || minimum='--env AGENTD_IT_ISOLATION=landlock'
  # shellcheck disable=SC2086 # words
  guest "$name" "$programs/agentd" "$it" |
    docker run --rm --interactive --network none --workdir /tmp ${OPTIONS[$name]} $minimum \
      --volume "$programs/agentd:$programs/agentd:ro" --volume "$programs/agentctl:$programs/agentctl:ro" \
      --volume "$programs/agentd-sandbox:$programs/agentd-sandbox:ro" --volume "$it:$it:ro" \
      agentd-container sh
}

judge() {
  local log=$1 missing=0 line name limit expected=()
  # That these are containers as anybody gets them: Docker's filter, Docker's capabilities, or none.
  expected+=('root Seccomp:.2' 'user Seccomp:.2' 'bare Seccomp:.2' 'granted Seccomp:.0')
  expected+=('root CapEff:.00000000a80425fb' 'bare NoNewPrivs:.1')
  for name in user bare granted; do expected+=("$name CapEff:.0000000000000000"); done
  for name in $NAMES; do
    expected+=("$name isolation: ${TIER[$name]}")
    for limit in memory processes cpu; do expected+=("$name $limit: polled"); done
    for line in $(tests_of "$name"); do expected+=("$name test .*$line.* ok"); done
  done
  # The built-in policy wants more than the weakest tier, and who looks is told.
  for name in root user bare; do expected+=("$name check: FAIL .*no program starts"); done
  expected+=('granted check: ok .*a program was started')
  for line in "${expected[@]}"; do
    if ! grep -aq "^$line" "$log"; then
      echo "never said: $line" >&2
      missing=1
    fi
  done
  if grep -a '^[a-z]* test .*FAILED' "$log" >&2; then missing=1; fi
  # Docker's filter refuses some calls to the control, too.
  if grep -a 'NOT CHECKED' "$log" | grep -v 'calls that this machine refuses to everybody' >&2; then missing=1; fi
  return $missing
}

main() {
  [[ $EUID == 0 ]] || cannot 'takes root, for dockerd'
  readonly TESTS=$*
  fetch
  local it programs name log=$CACHE/log
  cargo test --locked --test it --no-run || die 'the tests cannot be built'
  it=$(cargo test --locked --test it --no-run --message-format json 2>/dev/null |
    sed -n 's/.*"name":"it".*"executable":"\([^"]*\)".*/\1/p' | tail -1)
  [[ $it ]] || die 'cargo does not say where the tests are'
  programs=$(dirname "$(dirname "$it")")
  WORK=$(mktemp -d "$CACHE/work.XXXXXX")
  # A socket's path must be short.
  SOCKETS=$(mktemp -d /tmp/agentd-box.XXXXXX)
  GROUP=box-$$
  trap finish EXIT
  start "$WORK"
  tar -c -C "$CACHE/image" . | docker import - agentd-container >/dev/null || cannot 'no image can be made'
  docker run --rm --network none agentd-container true || cannot 'no container can be started'
  : >"$log"
  for name in $NAMES; do
    run_in "$name" "$programs" "$it" >>"$log" 2>&1 || die "in the container $name: $(tail -1 "$log")"
  done
  judge "$log" || die "in a container agentd is not what it says; see $log"
  for name in $NAMES; do echo "container $name: isolation ${TIER[$name]}"; done
  echo "what is found is what is told, and holds: $(grep -ac '^[a-z]* test .*::.* ok$' "$log") tests in $log"
}

main "$@"
