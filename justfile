# What people do with this tree. `just` lists it.

# This list
default:
    @just --list --unsorted

# Formats the source
fmt:
    cargo fmt

# Formatting and clippy, as the gate has them
lint:
    cargo fmt --check
    cargo clippy --locked --all-targets -- -D warnings

# All tests; with arguments, those whose names contain them
test *names:
    cargo test --locked {{ names }}

# The house's rules: who may use whom, sizes, headers, migrations
tidy:
    cargo test --locked --test it tidy

# Licences, banned crates and sources of the dependencies
licences:
    .ci/run licences

# A whole run on a throwaway project, judged
demo *flags:
    cargo build --release --locked
    "${CARGO_TARGET_DIR:-target}/release/agentctl" demo {{ flags }}

# Hostile input for what reads it: ten seconds each, or as its flags say (scripts/fuzz.sh)
fuzz *flags:
    scripts/fuzz.sh {{ flags }}

# Deaths of the daemon at named places, and as many at random times, judged by what callers were told and tools counted
kills times="100":
    AGENTD_KILLS={{ times }} cargo test --locked --test it kills:: -- --nocapture

# Power cuts at named places, and as many at random times, by the same judge; AGENTD_SEED has others
power-losses times="100":
    AGENTD_POWER_LOSSES={{ times }} cargo test --locked --test it power_loss:: -- --nocapture

# Calls that are reset half way, sent twice and out of order: so many rounds of each kind; AGENTD_SEED has others
rpc-faults rounds="200":
    AGENTD_RPC_FAULTS={{ rounds }} cargo test --locked --test it rpc_faults:: -- --nocapture

# docs/reports/compatibility.md: every server that can be had, looked at and given a run; wants the parts, llama among them
matrix:
    AGENTD_MATRIX=docs/reports/compatibility.md AGENTD_REAL_PARTS="$(scripts/real-parts.sh llama)" \
        cargo test --locked --test it -- matrix::

# All tests against the scripted server as another kind of one: openai, lmstudio, llamacpp, ollama or vllm
server kind *names:
    AGENTD_IT_SERVER={{ kind }} cargo test --locked --test it -- {{ names }}

# A backend that goes up and down at random under fifty runs, so many rounds of it; AGENTD_SEED has others
ups-and-downs rounds="10":
    AGENTD_ROUNDS={{ rounds }} cargo test --locked --test it backends::under_a_backend -- --nocapture

# What takes too long for the gate: thousands of deaths, every bug planted for the fuzzers found, the numbers of inputs that
# docs/reports/fuzzing.md tells of, and all tests of cgroup v2
nightly:
    AGENTD_KILLS=2000 cargo test --locked --test it kills:: -- --nocapture
    AGENTD_POWER_LOSSES=2000 cargo test --locked --test it power_loss:: -- --nocapture
    AGENTD_RPC_FAULTS=1000 cargo test --locked --test it rpc_faults:: -- --nocapture
    just ups-and-downs 50
    for kind in openai lmstudio llamacpp ollama vllm; do just server $kind; done
    scripts/fuzz.sh --planted
    scripts/fuzz.sh --runs 1000000 commands hosts redactor orders
    scripts/fuzz.sh --runs 300000 policy_files
    scripts/vm-cgroup-v2.sh

# The limits of cgroup v2, in an emulated machine; takes root, and four minutes
vm *names:
    scripts/vm-cgroup-v2.sh {{ names }}

# The tier and its walls in containers, by a Docker of its own; takes root, and half a minute
container *names:
    scripts/container.sh {{ names }}

# Benchmarks; with names, only those tables
bench *tables:
    cargo bench --locked --bench performance -- {{ tables }}

# Benchmarks with other runtimes beside ours; installs those
bench-peers *tables:
    AGENTD_REAL_PARTS=$(scripts/real-parts.sh peers-python peers-node) \
        cargo bench --locked --bench performance -- {{ tables }}

# Turns against the real llama.cpp with a real model; builds that from source, once, in 10 minutes or more
llama:
    cargo build --release --locked
    scripts/llama-cpp.py

# Installs the programs from elsewhere that the tests drive, and says where they are
parts:
    scripts/real-parts.sh

# The gate, from formatting to licences
ci:
    .ci/run

# Has git check each commit
hooks:
    #!/usr/bin/env bash
    set -euo pipefail
    hook=$(git rev-parse --git-path hooks)/pre-commit
    mkdir -p "$(dirname "$hook")"
    # Without -f: a hook of somebody's own is not ours to replace.
    [ "$hook" -ef scripts/hooks/pre-commit ] || ln -sr scripts/hooks/pre-commit "$hook"
