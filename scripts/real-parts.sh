#!/usr/bin/env bash
# Installs the programs from elsewhere that our tests drive:
#   python  a venv with llmock (a fake model server) and the gRPC
#           packages of a client that works by server reflection
#           with grpcio-tools, one with generated code
#   aimock  the npm package @copilotkit/aimock (another fake server;
#           it also brings a program called llmock: not that one)
#   node    the npm packages of a gRPC client for Node
#   buf     the npm package @bufbuild/buf, which judges our proto
# With no argument it installs all. Its only line on stdout is the
# directory DIR that holds them:
#   DIR/python/bin/python  DIR/python/bin/llmock
#   DIR/aimock/node_modules/.bin/aimock
#   DIR/node/node_modules  DIR/buf/node_modules/.bin/buf
#
# What must not be in it: an address of any kind (packages are asked
# for by name, from whatever registry pip and npm are set up with), a
# version that is not pinned, a write to the tree, or anything that
# building or running the daemon itself needs.
set -euo pipefail

# A stamp holds exactly these lines: change one, and the part is
# installed anew. The first six are those we use; the rest are what
# they need, pinned too so that no release of one changes a test.
python_pins='llmock==0.2.2
grpcio==1.85.1
grpcio-health-checking==1.85.1
grpcio-reflection==1.85.1
grpcio-tools==1.85.1
protobuf==7.36.2
annotated-doc==0.0.7
annotated-types==0.8.0
anyio==4.16.0
certifi==2026.10.18
click==8.5.1
fastapi==0.165.0
h11==0.16.0
httpcore==1.0.9
httptools==0.9.0
httpx==0.28.1
idna==3.20
markdown-it-py==4.3.0
mdurl==0.1.2
opentelemetry-api==1.45.2
pydantic==2.14.3
pydantic_core==2.50.4
Pygments==2.21.0
python-dotenv==1.2.4
python-multipart==0.0.34
PyYAML==6.0.3
rich==15.0.0
setuptools==84.2.1
shellingham==1.5.4
starlette==1.10.0
typer==0.29.2
typing-inspection==0.4.5
typing_extensions==4.16.0
uvicorn==0.54.0
uvloop==0.23.0
watchfiles==1.3.0
websockets==17.4'
aimock_pins='@copilotkit/aimock@1.43.0'
# The first two are those we use; what they need is pinned too.
node_pins='@grpc/grpc-js@1.14.7
@grpc/proto-loader@0.8.1
@js-sdsl/ordered-map@4.4.2
@protobufjs/aspromise@1.1.2
@protobufjs/base64@1.1.2
@protobufjs/codegen@2.0.5
@protobufjs/eventemitter@1.1.1
@protobufjs/fetch@1.1.1
@protobufjs/float@1.0.2
@protobufjs/path@1.1.2
@protobufjs/pool@1.1.0
@protobufjs/utf8@1.1.2
@types/node@26.6.6
ansi-regex@5.0.1
ansi-styles@4.3.0
cliui@8.0.1
color-convert@2.0.1
color-name@1.1.4
emoji-regex@8.0.0
escalade@3.2.0
get-caller-file@2.0.5
is-fullwidth-code-point@3.0.0
lodash.camelcase@4.3.0
long@5.3.2
protobufjs@7.6.6
require-directory@2.1.1
string-width@4.2.3
strip-ansi@6.0.1
undici-types@8.9.0
wrap-ansi@7.0.0
y18n@5.0.8
yargs@17.7.3
yargs-parser@21.1.1'
buf_pins='@bufbuild/buf@1.75.0'

# A bare CI user may have no HOME at all, or an empty one.
if [ -n "${AGENTD_PARTS_DIR:-}" ]; then
  dir=$AGENTD_PARTS_DIR
elif [ -n "${XDG_CACHE_HOME:-}" ]; then
  dir=$XDG_CACHE_HOME/agentd-parts
elif [ -n "${HOME:-}" ]; then
  dir=$HOME/.cache/agentd-parts
else
  dir=${TMPDIR:-/tmp}/agentd-parts-$UID
fi

program_of() { # part
  case $1 in
  python) echo bin/llmock ;;
  aimock) echo node_modules/.bin/aimock ;;
  # No program of its own: the one that shows that all is there.
  node) echo node_modules/.bin/proto-loader-gen-types ;;
  buf) echo node_modules/.bin/buf ;;
  esac
}

pins_of() { # part
  case $1 in
  python) echo "$python_pins" ;;
  aimock) echo "$aimock_pins" ;;
  node) echo "$node_pins" ;;
  buf) echo "$buf_pins" ;;
  esac
}

# Whether a part is there with today's pins. -x follows links, so one
# whose interpreter or package has gone counts as missing.
have() { # part
  local at=$dir/$1
  [ -f "$at/stamp" ] && [ -x "$at/$(program_of "$1")" ] &&
    { [ "$1" != python ] || [ -x "$at/bin/python" ]; } &&
    [ "$(<"$at/stamp")" = "$(pins_of "$1")" ]
}

install_python() {
  local at=$dir/python said
  python3 -m venv "$at"
  # The list is whole, hence --no-deps, and pip check to prove it.
  # Wheels only: a build from source would want a C++ toolchain.
  pins_of python >"$at/pins.txt"
  "$at/bin/python" -m pip install --quiet \
    --disable-pip-version-check --no-input --only-binary :all: \
    --no-deps -r "$at/pins.txt"
  said=$("$at/bin/python" -m pip check --disable-pip-version-check) || {
    echo "${0##*/}: $said"
    return 1
  }
}

# Their install scripts are none of ours.
install_npm() { # part
  local at=$dir/$1 pins
  mkdir -p "$at"
  mapfile -t pins < <(pins_of "$1")
  npm install --prefix "$at" --no-audit --no-fund --silent \
    --ignore-scripts --save-exact "${pins[@]}" || {
    # --silent keeps even this to itself.
    echo "${0##*/}: npm could not install ${pins[0]}"
    return 1
  }
}

install_aimock() { install_npm aimock; }
install_node() { install_npm node; }
install_buf() { install_npm buf; }

# Two test runs may start together: the second waits, then finds all
# there. What has no stamp was broken off half way: begin it again.
ensure() { # part
  (
    flock 9
    if ! have "$1"; then
      rm -rf "${dir:?}/$1"
      "install_$1" >&2
      pins_of "$1" >"$dir/$1/stamp"
    fi
  ) 9>"$dir/$1.lock"
}

[ $# -gt 0 ] || set -- python aimock node buf
for part; do
  case $part in
  python | aimock | node | buf) ;;
  *)
    echo "usage: ${0##*/} [python|aimock|node|buf]..." >&2
    exit 2
    ;;
  esac
done

mkdir -p "$dir"
dir=$(cd "$dir" && pwd) # whole, for a venv writes it into its files
# With an empty HOME npm would keep its logs in ./~, so in the tree.
[ -n "${HOME:-}" ] || export HOME=$dir
for part; do
  have "$part" || ensure "$part"
done
echo "$dir"
